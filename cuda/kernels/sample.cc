#include "cuda/kernels/sample.h"

#include <algorithm>
#include <array>

#include "cuda/kernels.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Rows sorted at once: more would fill no more of the device than this does of scratch.
constexpr int64_t kMaxBlocks = 64;

int64_t Blocks(const SampleArgs& args) { return std::min(args.logits.dim(0), kMaxBlocks); }

SampleScratch Carve(Workspace& workspace, const SampleArgs& args) {
  const int64_t tokens = Blocks(args) * args.logits.dim(1);
  SampleScratch scratch;
  for (int i = 0; i < 2; ++i) {
    scratch.keys[i] = workspace.Take<uint32_t>(tokens);
    scratch.tokens[i] = workspace.Take<int32_t>(tokens);
  }
  scratch.positions = workspace.Take<uint32_t>(Blocks(args) * kSampleDigits * kSampleThreads);
  return scratch;
}

int64_t WorkspaceBytes(const KernelContext&, const SampleArgs& args) {
  Workspace workspace = Workspace::Counting();
  Carve(workspace, args);
  return workspace.bytes_used();
}

absl::Status Run(const KernelContext& context, const SampleArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const SampleParams params = {ToDeviceTensor(args.logits),
                               ToDeviceTensor(args.uniform),
                               ToDeviceTensor(args.out),
                               args.logits.dim(0),
                               args.logits.dim(1),
                               args.temperature,
                               args.top_k,
                               args.top_p,
                               Carve(*context.workspace, args)};
  if (!context.workspace->ok()) return absl::InternalError("sample: workspace too small");
  SharedBytes shared;
  shared.Take<uint32_t>(kSampleThreads);
  shared.Take<double>(32);
  shared.Take<int64_t>(32);
  LaunchConfig config;
  config.grid.x = Blocks(args);
  config.block.x = kSampleThreads;
  config.shared_bytes = shared.total();
  return stream.Launch(SampleFunction(stream), config, params);
}

constexpr std::array<Kernel<SampleArgs>, 1> kKernels = {
    {{"generic", DeviceKind::kCuda, SupportsAll<SampleArgs>, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<SampleArgs> Kernels<SampleArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
