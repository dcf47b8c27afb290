// Attention, the kernel `hopper`: TMA and wgmma, for many queries on compute capability 9.0; see
// core/ops/attention.h.
#pragma once

#include "core/kernel.h"
#include "core/ops/attention.h"

namespace tandem::cuda {

absl::Status AttentionHopperSupports(const KernelContext& context, const AttentionArgs& args);
int64_t AttentionHopperWorkspaceBytes(const KernelContext& context, const AttentionArgs& args);
absl::Status RunAttentionHopper(const KernelContext& context, const AttentionArgs& args);

}  // namespace tandem::cuda
