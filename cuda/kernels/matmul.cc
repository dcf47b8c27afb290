#include "cuda/kernels/matmul.h"

#include <algorithm>
#include <array>

#include "core/ops/matmul.h"
#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/matmul_cublaslt.h"
#include "cuda/kernels/matmul_setup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// [Z, rows, columns], of rank 2 the same for every batch.
DeviceTensor Batched(const TensorView& view) {
  DeviceTensor tensor;
  if (!view.present()) return tensor;
  tensor.data = view.data;
  tensor.dtype = view.dtype;
  const bool batched = view.rank() == 3;
  tensor.dims[0] = batched ? view.dim(0) : 1;
  tensor.strides[0] = batched && view.dim(0) > 1 ? view.stride(0) : 0;
  for (int i = 0; i < 2; ++i) {
    tensor.dims[1 + i] = view.dim(i - 2);
    tensor.strides[1 + i] = view.stride(i - 2);
  }
  return tensor;
}

absl::Status Supports(const KernelContext&, const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("needs b itself, not only packed");
  return absl::OkStatus();
}

absl::Status GemvSupports(const KernelContext& context, const MatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(Supports(context, args));
  if (args.m() > kGemvMaxRows) return Unimplemented("at most ", kGemvMaxRows, " rows");
  return absl::OkStatus();
}

absl::Status RunTile(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const MatMulParams params = ToMatMulParams(args);
  const auto tiles = [](int64_t extent) { return (extent + kMatMulTile - 1) / kMatMulTile; };
  SharedBytes shared;
  shared.Take<float>(kMatMulTile * (kMatMulTileK + 1));
  shared.Take<float>(kMatMulTile * (kMatMulTileK + 1));
  LaunchConfig config;
  config.grid.x =
      std::min<int64_t>(params.batch * tiles(params.m) * tiles(params.n), int64_t{1} << 20);
  config.block.x = kMatMulTile * kMatMulTile;
  config.shared_bytes = shared.total();
  return stream.Launch(MatMulTileFunction(stream), config, params);
}

absl::Status RunGemv(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const MatMulParams params = ToMatMulParams(args);
  LaunchConfig config;
  config.grid.x =
      args.m() == 0 ? 0 : ElementBlocks(stream, params.batch * params.n * 32, kGemvThreads);
  config.block.x = kGemvThreads;
  return stream.Launch(GemvFunction(stream), config, params);
}

constexpr std::array<Kernel<MatMulArgs>, 7> kKernels = {
    {{"int8_dot", DeviceKind::kCuda, Int8DotSupports, NoWorkspace<MatMulArgs>, RunInt8Dot,
      Int8DotApplies},
     {"expanded", DeviceKind::kCuda, ExpandedSupports, ExpandedWorkspaceBytes, RunExpanded,
      ExpandedApplies},
     {"int8_mma", DeviceKind::kCuda, Int8MmaSupports, Int8MmaWorkspaceBytes, RunInt8Mma,
      Int8Applies},
     {"gemv_vector", DeviceKind::kCuda, GemvVectorSupports, NoWorkspace<MatMulArgs>, RunGemvVector,
      GemvVectorApplies},
     {"gemv", DeviceKind::kCuda, GemvSupports, NoWorkspace<MatMulArgs>, RunGemv},
     {"cublaslt", DeviceKind::kCuda, CublasLtSupports, CublasLtWorkspaceBytes, RunCublasLt,
      CublasLtApplies},
     {"generic", DeviceKind::kCuda, Supports, NoWorkspace<MatMulArgs>, RunTile}}};

}  // namespace

absl::Status CheckSharedBytes(const KernelContext& context, int64_t needed) {
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  if (needed <= have) return absl::OkStatus();
  return Unimplemented("needs ", needed, " bytes of shared memory, the device has ", have);
}

MatMulParams ToMatMulParams(const MatMulArgs& args) {
  MatMulParams params = {};
  params.a = Batched(args.a);
  params.b = Batched(args.b);
  params.bias = ToDeviceTensor(args.bias);
  params.addend = Batched(args.addend);
  params.out = Batched(args.out);
  params.batch = args.out.rank() == 3 ? args.out.dim(0) : 1;
  params.m = args.m();
  params.n = args.n();
  params.k = args.k();
  params.alpha = args.alpha;
  params.beta = args.beta;
  params.activation = args.activation;
  return params;
}

template <>
KernelList<MatMulArgs> Kernels<MatMulArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
