// The row-major product out = a b^T is the column-major out^T = b a^T: b is the library's A, a its
// B, and [M, N] with rows of stride ld its [N, M] with that leading dimension.
//
// Where the library can, it writes out itself: bias, an addend in the type of out (as its C), GELU
// into 16 bits. Otherwise it leaves alpha * a b^T in f32 in the workspace and MatMulFinish does the
// rest, so that out is rounded once all the same. Left to MatMulFinish on purpose: SiLU, which the
// library does not have; ReLU, for it is not documented to keep NaN; GELU in f32, for its accuracy
// is not documented; an addend together with an activation, which the library adds before it.
//
// The library multiplies matrices of one type. Where a has another type than b, MatMulRound first
// brings it to b's, in the workspace: exactly if b is f32, else rounded, which float_activations
// forbids (docs/numerics.md). For b in f16 every row of a is scaled by a power of two, so that it
// neither overflows nor vanishes, and MatMulFinish takes the scales out again.
#include "cuda/kernels/matmul_cublaslt.h"

#include <algorithm>
#include <optional>

#include "core/status.h"
#include "cuda/blas/device_blas.h"
#include "cuda/kernels/matmul_finish.h"
#include "cuda/kernels/matmul_round.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// A batch of matrices [rows, columns] as a library takes it.
struct Stored {
  bool transposed = false;  // rows, not columns, have stride 1
  int64_t ld = 0;
  int64_t batch_stride = 0;
};

// Nothing if neither rows nor columns have stride 1, or if they overlap.
std::optional<Stored> StoredAs(const TensorView& view) {
  const int64_t rows = view.dim(-2), columns = view.dim(-1);
  const int64_t row_stride = view.stride(-2), column_stride = view.stride(-1);
  // Of a single row any stride will do: one that keeps 16 bytes aligned.
  const auto any = [](int64_t extent) { return (extent + 7) / 8 * 8; };
  Stored stored;
  if (view.rank() == 3 && view.dim(0) > 1) stored.batch_stride = view.stride(0);
  if ((column_stride == 1 || columns == 1) && (row_stride >= columns || rows == 1)) {
    stored.ld = rows == 1 ? any(columns) : row_stride;
    return stored;
  }
  if ((row_stride == 1 || rows == 1) && (column_stride >= rows || columns == 1)) {
    stored.transposed = true;
    stored.ld = columns == 1 ? any(rows) : column_stride;
    return stored;
  }
  return std::nullopt;
}

// As MatMulRound leaves it: dense, rows 16-byte aligned.
Stored RoundedAs(const TensorView& view) {
  Stored stored;
  stored.ld = (view.dim(-1) + 7) / 8 * 8;
  const bool batched = view.rank() == 3 && view.dim(0) > 1 && view.stride(0) != 0;
  if (batched) stored.batch_stride = view.dim(-2) * stored.ld;
  return stored;
}

BlasMatrix ToBlas(const TensorView& view, const Stored& stored) {
  return {view.dtype, AlignmentOf(view.data), stored.ld, stored.batch_stride};
}

// A batch whose matrices follow each other is one matrix of batch * rows rows.
bool RowsFollow(const Stored& stored, int64_t rows, int64_t columns) {
  if (stored.transposed) return false;
  return rows == 1 ? stored.batch_stride >= columns : stored.batch_stride == rows * stored.ld;
}
void MakeOne(BlasMatrix& matrix, int64_t rows) {
  if (rows == 1) matrix.ld = matrix.batch_stride;
  matrix.batch_stride = 0;
}

// One call of the library, what comes before and what follows.
struct Product {
  BlasProblem problem;
  BlasOperands operands;  // but for the workspace
  bool finish = false;    // d is in the workspace, MatMulFinish follows
  MatMulFinishParams finish_params = {};
  bool round = false;   // b (our a) is in the workspace, MatMulRound comes before
  bool scales = false;  // and leaves scales of its rows
  MatMulRoundParams round_params = {};
};

bool AddendUsed(const MatMulArgs& args) { return args.addend.present() && args.beta != 0.0f; }

DeviceTensor Batched(const TensorView& view) {
  DeviceTensor tensor = ToDeviceTensor(view);
  if (view.rank() == 3) return tensor;
  return {tensor.data,
          tensor.dtype,
          {1, tensor.dims[0], tensor.dims[1], 1},
          {0, tensor.strides[0], tensor.strides[1], 0}};
}

// Can the library write out as it is to be?
bool Direct(const MatMulArgs& args, const std::optional<Stored>& out,
            const std::optional<Stored>& addend) {
  if (!out || out->transposed) return false;
  const DType dtype = args.out.dtype;
  if (dtype != DType::kF32 && dtype != args.b.dtype) return false;
  if (args.bias.present() &&
      (args.bias.dtype != dtype || (args.bias.stride(0) != 1 && args.n() > 1))) {
    return false;
  }
  if (AddendUsed(args)) {
    return args.activation == Activation::kNone && args.addend.dtype == dtype && addend &&
           !addend->transposed;
  }
  return args.activation == Activation::kNone ||
         (args.activation == Activation::kGelu && dtype != DType::kF32);
}

// Everything but what the device says. Unimplemented with the reason if it cannot be.
absl::StatusOr<Product> ToProduct(const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("needs b itself, not only packed");
  if (!IsFloat(args.b.dtype)) {
    return Unimplemented("needs b in f32, f16 or bf16, got ", std::string(Name(args.b.dtype)));
  }
  const bool round = args.a.dtype != args.b.dtype;
  if (round && args.b.dtype != DType::kF32 && args.float_activations) {
    return Unimplemented("would round a from ", std::string(Name(args.a.dtype)), " to ",
                         std::string(Name(args.b.dtype)), ", which float_activations forbids");
  }
  const int64_t m = args.m(), n = args.n(), k = args.k();
  int64_t batch = args.out.rank() == 3 ? args.out.dim(0) : 1;
  if (batch == 0 || m == 0 || n == 0 || k == 0) return Unimplemented("needs a product to compute");
  // BLAS need not read what is multiplied by 0: a NaN there would be lost.
  if (args.alpha == 0.0f) return Unimplemented("needs alpha other than 0");
  const std::optional<Stored> a = round ? RoundedAs(args.a) : StoredAs(args.a);
  const std::optional<Stored> b = StoredAs(args.b), out = StoredAs(args.out);
  if (!a || !b) {
    return Unimplemented("needs ", a ? "b" : "a",
                         " with stride 1 in one of its last two dimensions and no overlap");
  }
  std::optional<Stored> addend;
  if (AddendUsed(args)) addend = StoredAs(args.addend);

  Product product;
  product.round = round;
  product.scales = round && args.b.dtype == DType::kF16;
  product.finish = product.scales || !Direct(args, out, addend);
  BlasProblem& p = product.problem;
  p.m = n;
  p.n = m;
  p.k = k;
  p.transpose_a = !b->transposed;
  p.transpose_b = a->transposed;
  p.a = ToBlas(args.b, *b);
  p.b = ToBlas(args.a, *a);
  if (round) {
    p.b.dtype = args.b.dtype;
    p.b.alignment = kMaxBlasAlignment;
    MatMulRoundParams& params = product.round_params;
    params.a = Batched(args.a);
    params.m = m;
    params.k = k;
    params.rows = (a->batch_stride > 0 ? batch : 1) * m;
    params.rounded.dtype = args.b.dtype;
    params.rounded.strides[0] = a->ld;
  }
  BlasOperands& o = product.operands;
  o.a = args.b.data;
  o.b = args.a.data;
  o.alpha = args.alpha;
  bool one = batch > 1 && p.a.batch_stride == 0 && RowsFollow(*a, m, k);
  if (product.finish) {
    p.d = {DType::kF32, kMaxBlasAlignment, (n + 3) / 4 * 4, 0};
    if (batch > 1) p.d.batch_stride = m * p.d.ld;
    MatMulFinishParams& finish = product.finish_params;
    finish.product_row_stride = p.d.ld;
    finish.bias = ToDeviceTensor(args.bias);
    if (AddendUsed(args)) finish.addend = Batched(args.addend);
    finish.out = Batched(args.out);
    finish.batch = batch;
    finish.m = m;
    finish.n = n;
    finish.beta = args.beta;
    finish.activation = args.activation;
    if (a->batch_stride > 0) finish.scales_batch_stride = m;
  } else {
    p.d = ToBlas(args.out, *out);
    o.d = args.out.data;
    one = one && RowsFollow(*out, m, n) && (!addend || RowsFollow(*addend, m, n));
    if (addend) {
      p.has_c = true;
      p.c = ToBlas(args.addend, *addend);
      o.c = args.addend.data;
      o.beta = args.beta;
    }
    if (args.bias.present()) {
      p.bias = true;
      p.d.alignment = std::min(p.d.alignment, AlignmentOf(args.bias.data));
      o.bias = args.bias.data;
    }
    p.gelu = args.activation == Activation::kGelu;
  }
  if (one) {
    p.n = batch * m;
    batch = 1;
    for (BlasMatrix* matrix : {&p.b, &p.d, &p.c}) MakeOne(*matrix, m);
  }
  p.batch = batch;
  return product;
}

struct Layout {
  char* library;
  float* product;
  char* rounded;
  float* scales;
};
Layout Carve(Workspace& workspace, const Product& product, const BlasPlan& plan) {
  const BlasProblem& p = product.problem;
  const MatMulRoundParams& round = product.round_params;
  return {workspace.Take<char>(plan.workspace_bytes()),
          workspace.Take<float>(product.finish ? p.batch * p.n * p.d.ld : 0),
          workspace.Take<char>(product.round ? round.rows * round.rounded.strides[0] *
                                                   BlockBytes(round.rounded.dtype)
                                             : 0),
          workspace.Take<float>(product.scales ? round.rows : 0)};
}

absl::Status Round(CudaStream& stream, const MatMulRoundParams& params) {
  SharedBytes shared;
  MatMulRoundScratch(shared);
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(params.rows, int64_t{8} * stream.info().multiprocessors);
  config.block.x = kRoundThreads;
  config.shared_bytes = shared.total();
  return stream.Launch(MatMulRoundFunction(stream), config, params);
}

absl::Status Finish(CudaStream& stream, const MatMulFinishParams& params) {
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(
      params.batch * params.m * ((params.n + kFinishColumns - 1) / kFinishColumns),
      int64_t{8} * stream.info().multiprocessors);
  config.block.x = kFinishThreads;
  return stream.Launch(MatMulFinishFunction(stream), config, params);
}

absl::StatusOr<std::shared_ptr<const BlasPlan>> PlanFor(const KernelContext& context,
                                                        const Product& product) {
  DeviceBlas* blas = CudaStream::Of(context).blas();
  if (blas == nullptr) return Unimplemented("this stream has no BLAS library");
  absl::StatusOr<std::shared_ptr<const BlasPlan>> plan = blas->Plan(product.problem);
  // There is no library: for the kernel's caller, a reason like any other.
  if (absl::IsFailedPrecondition(plan.status())) return Unimplemented(Message(plan.status()));
  return plan;
}

}  // namespace

bool CublasLtApplies(const MatMulArgs& args) { return args.b.present() && IsFloat(args.b.dtype); }

absl::Status CublasLtSupports(const KernelContext& context, const MatMulArgs& args) {
  TANDEM_ASSIGN_OR_RETURN(const Product product, ToProduct(args));
  return PlanFor(context, product).status();
}

int64_t CublasLtWorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  const auto product = ToProduct(args);
  if (!product.ok()) return 0;
  const auto plan = PlanFor(context, *product);
  if (!plan.ok()) return 0;  // run says why
  Workspace workspace = Workspace::Counting();
  Carve(workspace, *product, **plan);
  return workspace.bytes_used();
}

absl::Status RunCublasLt(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_ASSIGN_OR_RETURN(Product product, ToProduct(args));
  TANDEM_ASSIGN_OR_RETURN(const auto plan, PlanFor(context, product));
  const Layout layout = Carve(*context.workspace, product, *plan);
  if (!context.workspace->ok()) {
    return absl::InternalError("matmul cublaslt: the workspace is smaller than was asked for");
  }
  product.operands.workspace = layout.library;
  product.operands.workspace_bytes = plan->workspace_bytes();
  if (product.finish) {
    product.operands.d = layout.product;
    product.finish_params.product = layout.product;
  }
  if (product.round) {
    product.operands.b = product.round_params.rounded.data = layout.rounded;
    if (product.scales) {
      product.finish_params.scales = product.round_params.scales = layout.scales;
    }
    TANDEM_RETURN_IF_ERROR(Round(stream, product.round_params));
  }
  TANDEM_ASSIGN_OR_RETURN(Blas * blas, stream.blas()->library());
  TANDEM_RETURN_IF_ERROR(blas->MatMul(stream.handle(), *plan, product.operands));
  return product.finish ? Finish(stream, product.finish_params) : absl::OkStatus();
}

}  // namespace tandem::cuda
