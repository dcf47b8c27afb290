// The order in which attention kernels are asked.
#include <array>

#include "core/ops/attention.h"
#include "core/workspace.h"
#include "cuda/kernels.h"
#include "cuda/kernels/attention_hopper_host.h"
#include "cuda/kernels/attention_kernels.h"
#include "cuda/kernels/attention_setup.h"

namespace tandem::cuda {
namespace {

int64_t ListBytes(const KernelContext&, const AttentionArgs& args) {
  Workspace workspace = Workspace::Counting();
  CountAttentionLists(workspace, args);
  return workspace.bytes_used();
}

constexpr std::array<Kernel<AttentionArgs>, 3> kKernels = {
    {{"hopper", DeviceKind::kCuda, AttentionHopperSupports, AttentionHopperWorkspaceBytes,
      RunAttentionHopper},
     {"prefill", DeviceKind::kCuda, PrefillAttentionSupports, ListBytes, RunPrefillAttention},
     {"generic", DeviceKind::kCuda, GenericAttentionSupports, ListBytes, RunGenericAttention}}};

}  // namespace

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
