#include "cuda/kernels/lookup.h"

#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/rotation.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kThreads = 256;

LaunchConfig ElementConfig(const CudaStream& stream, int64_t elements) {
  LaunchConfig config;
  config.grid.x = ElementBlocks(stream, elements, kThreads);
  config.block.x = kThreads;
  return config;
}

absl::Status RunRope(const KernelContext& context, const RopeArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RopeParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out),
                             ToRotationParams(args.rotation())};
  return stream.Launch(RopeFunction(stream), ElementConfig(stream, args.x.num_elements()), params);
}

absl::Status RunEmbedding(const KernelContext& context, const EmbeddingArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const EmbeddingParams params = {ToDeviceTensor(args.table), ToDeviceTensor(args.ids),
                                  ToDeviceTensor(args.out)};
  return stream.Launch(EmbeddingFunction(stream), ElementConfig(stream, args.out.num_elements()),
                       params);
}

absl::Status CastSupports(const KernelContext&, const CastArgs& args) {
  if (!IsBlockQuantized(args.out.dtype) || args.out.dtype == DType::kQ8_0 ||
      args.out.dtype == DType::kQ4_0) {
    return absl::OkStatus();
  }
  return Unimplemented("quantises to q8_0 and q4_0, not to ", std::string(Name(args.out.dtype)));
}

absl::Status RunCast(const KernelContext& context, const CastArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const CastParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out), args.x.dim(0),
                             args.x.dim(1)};
  return stream.Launch(CastFunction(stream, args.out.dtype),
                       ElementConfig(stream, args.x.num_elements()), params);
}

constexpr std::array<Kernel<RopeArgs>, 1> kRope = {
    {{"generic", DeviceKind::kCuda, SupportsAll<RopeArgs>, NoWorkspace<RopeArgs>, RunRope}}};
constexpr std::array<Kernel<EmbeddingArgs>, 1> kEmbedding = {
    {{"generic", DeviceKind::kCuda, SupportsAll<EmbeddingArgs>, NoWorkspace<EmbeddingArgs>,
      RunEmbedding}}};
constexpr std::array<Kernel<CastArgs>, 1> kCast = {
    {{"generic", DeviceKind::kCuda, CastSupports, NoWorkspace<CastArgs>, RunCast}}};

}  // namespace

template <>
KernelList<RopeArgs> Kernels<RopeArgs>() {
  return kRope;
}
template <>
KernelList<EmbeddingArgs> Kernels<EmbeddingArgs>() {
  return kEmbedding;
}
template <>
KernelList<CastArgs> Kernels<CastArgs>() {
  return kCast;
}

}  // namespace tandem::cuda
