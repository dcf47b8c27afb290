// The matrix products of `tandem bench-device`: weights [N, K] by 1, 16, 512 and N rows, and by 1
// to 8, and 64 and 512, of quantised weights that no cache holds.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "cuda/blas/device_blas.h"
#include "cuda/stream.h"
#include "dispatch/ops.h"
#include "tools/device_bench.h"

namespace tandem::tools {
namespace {

class MatMuls {
 public:
  // `blas`: nullptr if there is no library.
  MatMuls(DeviceBench& bench, cuda::Blas* blas)
      : bench_(bench),
        stream_(static_cast<cuda::CudaStream&>(*bench.device().stream)),
        blas_(blas) {}

  absl::Status Measure(DType dtype) {
    int64_t n = 64;
    while (2 * n * n * 2 <= bench_.bytes() && n < 8192) n *= 2;
    TANDEM_ASSIGN_OR_RETURN(const Tensor a, bench_.Normals(dtype, {n, n}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor b, bench_.Normals(dtype, {n, n}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor out, bench_.Zeros(dtype, {n, n}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor bias, bench_.Normals(dtype, {n}));
    for (const int64_t m :
         std::set<int64_t>{1, std::min<int64_t>(16, n), std::min<int64_t>(512, n), n}) {
      MatMulArgs args;
      args.a = Slice(a.view(), 0, 0, m);
      args.b = b;
      args.out = Slice(out.view(), 0, 0, m);
      library_seconds_ = 0.0;
      if (blas_ != nullptr) TANDEM_RETURN_IF_ERROR(ByLibrary(args));
      if (m == 1) {
        for (const int64_t rows : std::set<int64_t>{1, 2, 4, std::min<int64_t>(8, n)}) {
          MatMulArgs few = args;
          few.a = Slice(a.view(), 0, 0, rows);
          few.out = Slice(out.view(), 0, 0, rows);
          TANDEM_RETURN_IF_ERROR(ByKernel(few, "gemv_vector", ""));
        }
        TANDEM_RETURN_IF_ERROR(ByKernel(args, "gemv", ""));
      }
      if (blas_ != nullptr) TANDEM_RETURN_IF_ERROR(ByKernel(args, "cublaslt", ""));
      TANDEM_RETURN_IF_ERROR(ByKernel(args, "generic", ""));
      if (blas_ == nullptr || dtype != DType::kBF16 || m == 1) continue;
      args.bias = bias;
      args.addend = args.out;
      args.beta = 0.5f;
      TANDEM_RETURN_IF_ERROR(ByKernel(args, "cublaslt", " + bias + residual"));
      args.addend = {};
      args.activation = Activation::kSilu;
      TANDEM_RETURN_IF_ERROR(ByKernel(args, "cublaslt", " + bias + silu"));
    }
    return absl::OkStatus();
  }

  // Activations and results in f32, as a model has them.
  absl::Status MeasureQuantized(DType dtype) {
    int64_t n = 64;
    while (2 * n * n * 4 <= bench_.bytes() && n < 8192) n *= 2;
    const int64_t k = std::max<int64_t>(n, 256);
    TANDEM_ASSIGN_OR_RETURN(const Tensor a, bench_.Normals(DType::kF32, {512, k}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor part, bench_.Normals(DType::kF32, {n, k}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor b, bench_.Zeros(dtype, {kParts * n, k}));
    for (int64_t i = 0; i < kParts; ++i) {
      TANDEM_RETURN_IF_ERROR(
          CastInto(bench_.context(), {part.view(), Slice(b.view(), 0, i * n, n)}));
    }
    TANDEM_ASSIGN_OR_RETURN(const Tensor out, bench_.Zeros(DType::kF32, {512, kParts * n}));
    library_seconds_ = 0.0;
    for (const int64_t m : {1, 2, 4, 8, 64, 512}) {
      MatMulArgs args;
      args.a = Slice(a.view(), 0, 0, m);
      args.b = b;
      args.out = Slice(out.view(), 0, 0, m);
      if (m <= 2) TANDEM_RETURN_IF_ERROR(ByKernel(args, "int8_dot", ""));
      TANDEM_RETURN_IF_ERROR(ByKernel(args, "int8_mma", ""));
      if (m == 512 && blas_ != nullptr) TANDEM_RETURN_IF_ERROR(ByKernel(args, "expanded", ""));
    }
    return absl::OkStatus();
  }

 private:
  // Of quantised weights: so many times the rows, that a few bits of each are more than a cache.
  static constexpr int64_t kParts = 4;

  absl::Status Row(const MatMulArgs& args, const std::string& by, const std::string& extra,
                   const std::function<absl::Status()>& run) {
    const std::string dtype(Name(args.b.dtype));
    const auto m = static_cast<double>(args.m()), n = static_cast<double>(args.n()),
               k = static_cast<double>(args.k());
    TANDEM_ASSIGN_OR_RETURN(
        DeviceBenchRow * row,
        bench_.Measure(
            absl::StrFormat("matmul %s %d x %d x %d%s, %s", dtype, args.m(), args.n(), args.k(),
                            extra, by),
            static_cast<double>(ByteExtent(args.a) + ByteExtent(args.b) + ByteExtent(args.out)),
            2 * m * n * k, run));
    if (by == "library") library_seconds_ = row->seconds;
    row->dtype = dtype;
    row->m = args.m();
    row->n = args.n();
    row->k = args.k();
    row->by = by + extra;
    if (library_seconds_ > 0.0) row->of_library = library_seconds_ / row->seconds;
    return absl::OkStatus();
  }

  // By nothing but the call of the library: all contiguous, b as [N, K].
  absl::Status ByLibrary(const MatMulArgs& args) {
    cuda::BlasProblem problem;
    problem.m = args.n();
    problem.n = args.m();
    problem.k = args.k();
    problem.transpose_a = true;
    problem.a = {.dtype = args.b.dtype, .ld = args.k()};
    problem.b = {.dtype = args.a.dtype, .ld = args.k()};
    problem.d = {.dtype = args.out.dtype, .ld = args.n()};
    problem.max_workspace_bytes = cuda::DeviceBlas::kWorkspaceBytes;
    TANDEM_ASSIGN_OR_RETURN(const auto plan, blas_->MakePlan(problem));
    TANDEM_ASSIGN_OR_RETURN(
        const Tensor scratch,
        bench_.Zeros(DType::kI8, {std::max<int64_t>(plan->workspace_bytes(), 1)}));
    const cuda::BlasOperands operands = {.a = args.b.data,
                                         .b = args.a.data,
                                         .d = args.out.data,
                                         .workspace = scratch.view().data,
                                         .workspace_bytes = plan->workspace_bytes()};
    return Row(args, "library", "",
               [&] { return blas_->MatMul(stream_.handle(), *plan, operands); });
  }

  absl::Status ByKernel(const MatMulArgs& args, const std::string& kernel,
                        const std::string& extra) {
    const std::string before = bench_.context().forced_kernel(OpKind::kMatMul);
    TANDEM_RETURN_IF_ERROR(bench_.context().ForceKernel(OpKind::kMatMul, kernel));
    const absl::Status status =
        Row(args, kernel, extra, [&] { return MatMulInto(bench_.context(), args); });
    TANDEM_RETURN_IF_ERROR(bench_.context().ForceKernel(OpKind::kMatMul, before));
    return status;
  }

  DeviceBench& bench_;
  cuda::CudaStream& stream_;
  cuda::Blas* blas_;
  double library_seconds_ = 0.0;
};

}  // namespace

absl::Status MeasureMatMuls(DeviceBench& bench, std::string& library) {
  cuda::DeviceBlas* device = static_cast<cuda::CudaStream&>(*bench.device().stream).blas();
  const absl::StatusOr<cuda::Blas*> blas = device->library();
  library = blas.ok() ? (*blas)->name() : Message(blas.status());
  MatMuls products(bench, blas.ok() ? *blas : nullptr);
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    TANDEM_RETURN_IF_ERROR(products.Measure(dtype));
  }
  for (const DType dtype :
       {DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0}) {
    TANDEM_RETURN_IF_ERROR(products.MeasureQuantized(dtype));
  }
  return absl::OkStatus();
}

}  // namespace tandem::tools
