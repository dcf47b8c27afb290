// The order in which attention kernels are asked.
#include <array>

#include "core/ops/attention.h"
#include "core/workspace.h"
#include "cuda/kernels.h"
#include "cuda/kernels/attention_decode.h"
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

int64_t DecodeBytes(const KernelContext& context, const AttentionArgs& args) {
  return DecodeWorkspaceBytes(context, args);
}
absl::Status Decode(const KernelContext& context, const AttentionArgs& args) {
  return RunDecode(context, args);
}

constexpr std::array<Kernel<AttentionArgs>, 6> kKernels = {
    {{"hopper", DeviceKind::kCuda, AttentionHopperSupports, AttentionHopperWorkspaceBytes,
      RunAttentionHopper},
     {"decode", DeviceKind::kCuda, SupportsDecode, DecodeBytes, Decode},
     {"prefill", DeviceKind::kCuda, PrefillAttentionSupports, ListBytes, RunPrefillAttention},
     {"prefill_i8", DeviceKind::kCuda, PrefillI8AttentionSupports, ListBytes,
      RunPrefillI8Attention},
     {"prefill_f32", DeviceKind::kCuda, PrefillFloatAttentionSupports, ListBytes,
      RunPrefillFloatAttention},
     {"generic", DeviceKind::kCuda, GenericAttentionSupports, ListBytes, RunGenericAttention}}};

}  // namespace

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
