#include "cuda/kernels/merge_attention.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/stager.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

int64_t WorkspaceBytes(const KernelContext&, const MergeAttentionArgs& args) {
  Workspace workspace = Workspace::Counting();
  workspace.Take<MergePart>(args.parts());
  return workspace.bytes_used();
}

absl::Status Run(const KernelContext& context, const MergeAttentionArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  auto* table = context.workspace->Take<MergePart>(args.parts());
  if (!context.workspace->ok()) {
    return absl::InternalError("merge_attention: workspace too small");
  }
  Stager stager(stream, table);
  for (size_t i = 0; i < args.out_parts.size(); ++i) {
    const MergePart part = {ToDeviceTensor(args.out_parts[i]), ToDeviceTensor(args.lse_parts[i])};
    TANDEM_RETURN_IF_ERROR(stager.Put(&part, sizeof(part)));
  }
  TANDEM_RETURN_IF_ERROR(stager.Flush());
  const MergeAttentionParams params = {table, args.parts(), ToDeviceTensor(args.out),
                                       ToDeviceTensor(args.lse)};
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(args.out.dim(0) * args.out.dim(1) * args.out.dim(2), 65535);
  config.block.x = 128;
  return stream.Launch(MergeAttentionFunction(stream), config, params);
}

constexpr std::array<Kernel<MergeAttentionArgs>, 1> kKernels = {
    {{"generic", DeviceKind::kCuda, SupportsAll<MergeAttentionArgs>, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<MergeAttentionArgs> Kernels<MergeAttentionArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
