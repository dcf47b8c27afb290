#include "cuda/kernels/rows.h"

#include <algorithm>
#include <array>

#include "cuda/kernels.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kWarps = 32;  // as many partial results as a block may have

template <typename Partial>
LaunchConfig RowConfig(int64_t rows) {
  SharedBytes shared;
  shared.Take<Partial>(kWarps);
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(rows, 65535);
  config.block.x = kRowThreads;
  config.shared_bytes = shared.total();
  return config;
}

int64_t NumRows(const TensorView& view) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < view.rank(); ++i) rows *= view.dim(i);
  return rows;
}

absl::Status RunSoftmax(const KernelContext& context, const SoftmaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const SoftmaxParams params = {ToDeviceRows(args.x), ToDeviceRows(args.out), args.x.dim(0),
                                args.x.dim(1), args.scale};
  return stream.Launch(SoftmaxFunction(stream), RowConfig<float>(params.rows), params);
}

absl::Status RunRmsNorm(const KernelContext& context, const RmsNormArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RmsNormParams params = {ToDeviceRows(args.x),   ToDeviceTensor(args.weight),
                                ToDeviceRows(args.out), ToDeviceRows(args.residual),
                                ToDeviceRows(args.sum), NumRows(args.x),
                                args.x.dim(-1),         args.eps};
  return stream.Launch(RmsNormFunction(stream), RowConfig<float>(params.rows), params);
}

absl::Status RunArgMax(const KernelContext& context, const ArgMaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const ArgMaxParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out), args.x.dim(0),
                               args.x.dim(1)};
  return stream.Launch(ArgMaxFunction(stream), RowConfig<uint64_t>(params.rows), params);
}

constexpr std::array<Kernel<SoftmaxArgs>, 1> kSoftmax = {
    {{"generic", DeviceKind::kCuda, SupportsAll<SoftmaxArgs>, NoWorkspace<SoftmaxArgs>,
      RunSoftmax}}};
constexpr std::array<Kernel<RmsNormArgs>, 1> kRmsNorm = {
    {{"generic", DeviceKind::kCuda, SupportsAll<RmsNormArgs>, NoWorkspace<RmsNormArgs>,
      RunRmsNorm}}};
constexpr std::array<Kernel<ArgMaxArgs>, 1> kArgMax = {
    {{"generic", DeviceKind::kCuda, SupportsAll<ArgMaxArgs>, NoWorkspace<ArgMaxArgs>, RunArgMax}}};

}  // namespace

template <>
KernelList<SoftmaxArgs> Kernels<SoftmaxArgs>() {
  return kSoftmax;
}
template <>
KernelList<RmsNormArgs> Kernels<RmsNormArgs>() {
  return kRmsNorm;
}
template <>
KernelList<ArgMaxArgs> Kernels<ArgMaxArgs>() {
  return kArgMax;
}

}  // namespace tandem::cuda
