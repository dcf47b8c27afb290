#include "cuda/kernels/matmul_int8.h"

#include <algorithm>

#include "core/status.h"
#include "cuda/kernels/matmul_setup.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Blocks of threads from which on more of them gain little: two for each multiprocessor of an H200.
// A number of its own, so that sums are cut the same way on every device.
constexpr int64_t kEnoughBlocks = 256;
constexpr int64_t kMaxGridY = 65535;
constexpr int64_t kMaxDepth = int64_t{1} << 30;  // bytes of a row are counted in 32 bits

constexpr bool HasMinima(DType dtype) { return dtype == DType::kQ4_K || dtype == DType::kQ5_K; }

absl::Status Supports(const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("needs b itself, not only packed");
  if (!IsBlockQuantized(args.b.dtype)) {
    return Unimplemented("needs b in a block format, got ", std::string(Name(args.b.dtype)));
  }
  if (args.float_activations) {
    return Unimplemented("would round a to 8 bits, which float_activations forbids");
  }
  if (reinterpret_cast<uintptr_t>(args.b.data) % 16 != 0) {
    return Unimplemented("needs b to begin on 16 bytes");
  }
  return absl::OkStatus();
}

// How int8_mma cuts a product.
struct MmaShape {
  int groups;          // of 8 rows of a, per block of threads
  int64_t tiles_m;     // blocks of threads along M
  int64_t x_matrices;  // matrices of activations that are rounded
  int64_t x_groups;    // groups of one of them
  int64_t slots;       // of all of them
};
MmaShape ShapeOf(const MatMulParams& params) {
  const int64_t groups = (params.m + 7) / 8;
  MmaShape shape = {};
  shape.groups = groups <= 1 ? 1 : groups <= 2 ? 2 : groups <= 4 ? 4 : 8;
  shape.tiles_m = (groups + shape.groups - 1) / shape.groups;
  shape.x_matrices = params.a.strides[0] == 0 ? 1 : params.batch;
  shape.x_groups = shape.tiles_m * shape.groups;
  shape.slots = shape.x_matrices * shape.x_groups * 8 * (params.k / kInt8Block);
  return shape;
}
int64_t MmaSharedBytes(DType weights, int groups) {
  return DispatchBlock(weights, [&]<typename Block>() {
    SharedBytes shared;
    CarveInt8Mma<Block>(shared, groups);
    return shared.total();
  });
}
Int8Activations Carve(Workspace& workspace, const MmaShape& shape) {
  Int8Activations x;
  x.quants = workspace.Take<uint32_t>(shape.slots * 8);
  x.scales = workspace.Take<Int8Scale>(shape.slots);
  return x;
}

absl::Status Quantize(CudaStream& stream, const Int8MmaParams& params, const MmaShape& shape,
                      DType weights) {
  Int8QuantizeParams quantize = {};
  quantize.a = params.a;
  quantize.to = params.x;
  quantize.batch = shape.x_matrices;
  quantize.m = params.m;
  quantize.padded_m = shape.x_groups * 8;
  quantize.blocks = params.blocks;
  quantize.columns = 8;
  quantize.scaled_sums = HasMinima(weights);
  constexpr int64_t kBlocks = kInt8QuantizeThreads / 8;
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(quantize.batch * quantize.padded_m, INT32_MAX);
  config.grid.y = std::clamp<int64_t>((params.blocks + kBlocks - 1) / kBlocks, 1, kMaxGridY);
  config.block.x = kInt8QuantizeThreads;
  return stream.Launch(Int8QuantizeFunction(stream), config, quantize);
}

}  // namespace

Int8MatMulParams ToInt8Params(const MatMulArgs& args) {
  Int8MatMulParams params = {};
  static_cast<MatMulParams&>(params) = ToMatMulParams(args);
  const DType dtype = args.b.dtype;
  const auto bytes = [&](int64_t elements) {
    return elements / BlockLength(dtype) * BlockBytes(dtype);
  };
  params.blocks = params.k / kInt8Block;
  params.row_bytes = bytes(params.b.strides[1]);
  params.batch_bytes = bytes(params.b.strides[0]);
  params.used_bytes = bytes(params.k);
  return params;
}

int64_t Int8DotSharedBytes(DType weights, int64_t rows, int64_t k) {
  return DispatchBlock(weights, [&]<typename Block>() {
    SharedBytes shared;
    CarveInt8Dot<Block>(shared, static_cast<int>(rows), k / kInt8Block);
    return shared.total();
  });
}

bool Int8Applies(const MatMulArgs& args) {
  return args.b.present() && IsBlockQuantized(args.b.dtype) && !args.float_activations;
}

bool Int8DotApplies(const MatMulArgs& args) {
  return Int8Applies(args) && args.m() <= kInt8DotMaxRows;
}

absl::Status Int8DotSupports(const KernelContext& context, const MatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(Supports(args));
  if (args.m() > kInt8DotMaxRows) return Unimplemented("at most ", kInt8DotMaxRows, " rows");
  return CheckSharedBytes(context, Int8DotSharedBytes(args.b.dtype, args.m(), args.k()));
}

absl::Status RunInt8Dot(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const Int8MatMulParams params = ToInt8Params(args);
  if (params.m == 0) return absl::OkStatus();
  LaunchConfig config;
  // 4 blocks keep a multiprocessor full. All of them at once: each rounds the activations.
  config.grid.x = std::min<int64_t>((params.n + kInt8DotWarps - 1) / kInt8DotWarps,
                                    int64_t{4} * stream.info().multiprocessors);
  config.grid.y = std::min(params.batch, kMaxGridY);
  config.block.x = kInt8DotWarps * 32;
  config.shared_bytes = Int8DotSharedBytes(args.b.dtype, args.m(), args.k());
  return stream.Launch(Int8DotFunction(stream, args.b.dtype, static_cast<int>(params.m)), config,
                       params);
}

absl::Status Int8MmaSupports(const KernelContext& context, const MatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(Supports(args));
  if (args.k() > kMaxDepth) return Unimplemented("K: at most ", kMaxDepth, ", got ", args.k());
  return CheckSharedBytes(context,
                          MmaSharedBytes(args.b.dtype, ShapeOf(ToMatMulParams(args)).groups));
}

int64_t Int8MmaWorkspaceBytes(const KernelContext&, const MatMulArgs& args) {
  Workspace workspace = Workspace::Counting();
  Carve(workspace, ShapeOf(ToMatMulParams(args)));
  return workspace.bytes_used();
}

absl::Status RunInt8Mma(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  Int8MmaParams params = {};
  static_cast<Int8MatMulParams&>(params) = ToInt8Params(args);
  if (params.batch == 0 || params.m == 0 || params.n == 0) return absl::OkStatus();
  const MmaShape shape = ShapeOf(params);
  params.x = Carve(*context.workspace, shape);
  if (!context.workspace->ok()) {
    return absl::InternalError("matmul int8_mma: the workspace is smaller than was asked for");
  }
  if (params.blocks > 0) {
    TANDEM_RETURN_IF_ERROR(Quantize(stream, params, shape, args.b.dtype));
  }
  params.x_groups = params.a.strides[0] == 0 ? 0 : shape.x_groups;
  // Warps share K where there are too few rows of weights for all.
  const int64_t strips = (params.n + kInt8MmaRows - 1) / kInt8MmaRows;
  const int64_t pieces = params.k / kInt8MmaDepth;
  const auto tiles_n = [&](int shift) {
    const int64_t own = kInt8MmaWarps >> shift;
    return (strips + own - 1) / own;
  };
  int shift = 0;
  while (shift < 3 && params.batch * shape.tiles_m * tiles_n(shift) < kEnoughBlocks &&
         int64_t{2} << shift <= pieces) {
    ++shift;
  }
  params.split_shift = shift;
  params.tiles_m = Divisor(shape.tiles_m);
  params.tiles_n = Divisor(tiles_n(shift));
  params.tiles = params.batch * shape.tiles_m * tiles_n(shift);
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(params.tiles, INT32_MAX);
  config.block.x = kInt8MmaWarps * 32;
  config.shared_bytes = MmaSharedBytes(args.b.dtype, shape.groups);
  return stream.Launch(Int8MmaFunction(stream, args.b.dtype, shape.groups), config, params);
}

}  // namespace tandem::cuda
