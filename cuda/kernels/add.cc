#include "core/ops/add.h"

#include <algorithm>
#include <array>

#include "cuda/kernels.h"
#include "cuda/kernels/add.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kThreads = 256;

absl::Status Run(const KernelContext& context, const AddArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  AddParams params = {ToDeviceTensor(args.a), ToDeviceTensor(args.b), ToDeviceTensor(args.out),
                      args.out.dim(0), args.out.dim(1)};
  if (args.b.dim(0) == 1) params.b.strides[0] = 0;
  LaunchConfig config;
  config.grid.x = ElementBlocks(stream, args.out.num_elements(), kThreads);
  config.block.x = kThreads;
  return stream.Launch(AddFunction(stream, args.a.dtype, args.b.dtype, args.out.dtype), config,
                       params);
}

constexpr std::array<Kernel<AddArgs>, 1> kKernels = {
    {{"generic", DeviceKind::kCuda, SupportsAll<AddArgs>, NoWorkspace<AddArgs>, Run}}};

}  // namespace

template <>
KernelList<AddArgs> Kernels<AddArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
