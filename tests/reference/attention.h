// Attention by its definition (core/ops/attention.h), on host memory.
#pragma once

#include <vector>

#include "core/ops/attention.h"

namespace tandem::reference {

struct AttentionResult {
  std::vector<double> out;   // [B, Hq, Sq, Dv] row-major
  std::vector<double> lse;   // [B, Hq, Sq]
  std::vector<bool> masked;  // [B, Hq, Sq]: the query sees no key
};

// In f64 throughout: the oracle.
AttentionResult Attention(const AttentionArgs& args);

// The straightforward implementation at one storage precision, as a framework's eager mode computes
// it: inputs, scores and probabilities are stored in `storage`, sums are f32, the result is stored
// in out's dtype. Its error against the oracle sets the tolerance. lse is computed from unrounded
// f32 scores.
AttentionResult NaiveAttention(const AttentionArgs& args, DType storage);

}  // namespace tandem::reference
