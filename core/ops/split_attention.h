// Attention over the parts of a cache: one call per part, each of which can run on another device,
// on other threads or later, and whose results merge_attention makes into those of the whole call.
//
//   parts = SplitAttention(args, {1000, 3000})    rows 0..999, 1000..2999, 3000..
//   each: part.out, part.lse = memory of its own; AttentionInto(context, part)
//   MergeAttentionInto(context, {outs, lses, args.out, args.lse})
//
// The parts are views of the same memory with keys_before and keys_after set
// (core/ops/attention.h); the last one has the new keys and the sinks. Exact for every pattern,
// ragged or not: a part counts positions as the whole does.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "core/ops/attention.h"

namespace tandem {

// One call more than there are cuts. `args` must be a valid call, and may itself be a part. Cuts
// are rows of its cache, in ascending order; two equal ones make an empty part. out and lse of the
// parts are not set.
// InvalidArgument: cuts out of order; a paged cache cut within a page; a packed mask cut within a
// word; a mask or bias with a column per key beside new keys and kv_lens, where the new keys of
// each sequence have other columns.
absl::StatusOr<std::vector<AttentionArgs>> SplitAttention(const AttentionArgs& args,
                                                          std::span<const int64_t> cuts);

// The columns that keys [begin, begin + keys) of the whole have in its bias or mask; one that holds
// for all keys stays, and so does an absent one. Of a packed mask, begin is a multiple of 32.
void TakeKeyColumns(TensorView& view, int64_t begin, int64_t keys);

}  // namespace tandem
