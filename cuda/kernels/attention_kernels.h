// The attention kernels that attention_list.cc puts in order.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "core/kernel.h"
#include "core/ops/attention.h"

namespace tandem::cuda {

absl::Status PrefillAttentionSupports(const KernelContext& context, const AttentionArgs& args);
absl::Status RunPrefillAttention(const KernelContext& context, const AttentionArgs& args);

// int8 caches with f32 queries.
absl::Status PrefillI8AttentionSupports(const KernelContext& context, const AttentionArgs& args);
absl::Status RunPrefillI8Attention(const KernelContext& context, const AttentionArgs& args);

// f32 caches, and what else 16 bits are not enough for.
absl::Status PrefillFloatAttentionSupports(const KernelContext& context, const AttentionArgs& args);
absl::Status RunPrefillFloatAttention(const KernelContext& context, const AttentionArgs& args);

absl::Status GenericAttentionSupports(const KernelContext& context, const AttentionArgs& args);
absl::Status RunGenericAttention(const KernelContext& context, const AttentionArgs& args);

}  // namespace tandem::cuda
