// Attention by its definition (core/ops/attention.h), on host memory.
#pragma once

#include <cstdint>
#include <vector>

#include "core/ops/attention.h"

namespace tandem::reference {

// One sequence of a batch, read from q_lens, q_offsets, kv_lens and kv_starts.
struct AttentionExtent {
  int64_t plane = 0;      // index into dimension 0 of q, out and lse
  int64_t first_row = 0;  // its first query there
  int64_t cache_len = 0;  // keys in the cache; new keys follow
  MaskRule rule;
};

AttentionExtent ExtentOf(const AttentionArgs& args, int64_t b);

// The keys that query i of sequence b sees with head h, in order.
std::vector<int64_t> VisibleKeys(const AttentionArgs& args, const AttentionExtent& extent,
                                 int64_t b, int64_t h, int64_t i);

// Element offset of element 0 of key or value j of sequence b and kv head g in `cache` (k, v or
// their scales) or, if the key is a new one, in `fresh`.
struct KeyPlace {
  const TensorView* view;
  int64_t offset;
};
KeyPlace PlaceOf(const AttentionArgs& args, const AttentionExtent& extent, const TensorView& cache,
                 const TensorView& fresh, int64_t b, int64_t g, int64_t j);

// Element offset in bias or mask: extents of 1 hold for every index.
int64_t BroadcastOffset(const TensorView& view, int64_t b, int64_t h, int64_t row, int64_t column);

struct AttentionResult {
  std::vector<double> out;   // as out, row-major
  std::vector<double> lse;   // as lse would be
  std::vector<bool> masked;  // the same: the query sees no key
};

// In f64 throughout: the oracle.
AttentionResult Attention(const AttentionArgs& args);

// The straightforward implementation at one storage precision, as a framework's eager mode computes
// it: inputs, scores and probabilities are stored in `storage`, sums are f32, the result is stored
// in out's dtype. Its error against the oracle sets the tolerance. lse is computed from unrounded
// f32 scores.
AttentionResult NaiveAttention(const AttentionArgs& args, DType storage);

}  // namespace tandem::reference
