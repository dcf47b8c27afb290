// The attention kernels that attention_list.cc puts in order.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "core/kernel.h"
#include "core/ops/attention.h"

namespace tandem::cuda {

absl::Status PrefillAttentionSupports(const KernelContext& context, const AttentionArgs& args);
absl::Status RunPrefillAttention(const KernelContext& context, const AttentionArgs& args);

absl::Status GenericAttentionSupports(const KernelContext& context, const AttentionArgs& args);
absl::Status RunGenericAttention(const KernelContext& context, const AttentionArgs& args);

}  // namespace tandem::cuda
