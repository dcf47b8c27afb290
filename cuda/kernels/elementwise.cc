#include "cuda/kernels/elementwise.h"

#include <array>

#include "cuda/kernels.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kThreads = 256;

absl::Status RunBinary(CudaStream& stream, const KernelFunction& function, const TensorView& a,
                       const TensorView& b, const TensorView& out) {
  BinaryParams params = {ToDeviceTensor(a), ToDeviceTensor(b), ToDeviceTensor(out), out.dim(0),
                         out.dim(1)};
  if (b.dim(0) == 1) params.b.strides[0] = 0;
  LaunchConfig config;
  config.grid.x = ElementBlocks(stream, out.num_elements(), kThreads);
  config.block.x = kThreads;
  return stream.Launch(function, config, params);
}

absl::Status RunAdd(const KernelContext& context, const AddArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  return RunBinary(stream, AddFunction(stream), args.a, args.b, args.out);
}

absl::Status RunSiluMul(const KernelContext& context, const SiluMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  return RunBinary(stream, SiluMulFunction(stream), args.gate, args.up, args.out);
}

constexpr std::array<Kernel<AddArgs>, 1> kAdd = {
    {{"generic", DeviceKind::kCuda, SupportsAll<AddArgs>, NoWorkspace<AddArgs>, RunAdd}}};
constexpr std::array<Kernel<SiluMulArgs>, 1> kSiluMul = {
    {{"generic", DeviceKind::kCuda, SupportsAll<SiluMulArgs>, NoWorkspace<SiluMulArgs>,
      RunSiluMul}}};

}  // namespace

template <>
KernelList<AddArgs> Kernels<AddArgs>() {
  return kAdd;
}
template <>
KernelList<SiluMulArgs> Kernels<SiluMulArgs>() {
  return kSiluMul;
}

}  // namespace tandem::cuda
