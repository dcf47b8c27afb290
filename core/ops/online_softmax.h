// Softmax of a sequence seen in pieces (Milakov & Gimelshein 2018; the merge as in FlashAttention
// and flash-decoding).
//
// The state of the scores s_0..s_n-1 seen so far, and of the values weighted by them:
//   max = max_i s_i          sum = sum_i exp(s_i - max)          acc = sum_i exp(s_i - max) * v_i
//   (kept by the kernel)
// Two states merge exactly: m = max(a.max, b.max), every sum and accumulator is scaled by exp(its
// max - m). Result: out = acc / sum, lse = max + log(sum). The empty state (max = -inf, sum = 0) is
// the neutral element; a row that ends empty yields out = 0, lse = -inf. A NaN score makes sum NaN
// and therefore the row NaN.
#pragma once

#include <cmath>
#include <limits>

#include "core/ops/mask_rule.h"

namespace tandem {

inline constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// exp(s - m) for s <= m, with exp(-inf - -inf) = 0: no key seen yet contributes nothing.
TANDEM_HOST_DEVICE inline float ExpDiff(float s, float m) {
  return s == kNegInf ? 0.0f : expf(s - m);
}

struct SoftmaxState {
  float max = kNegInf;
  float sum = 0.0f;

  // Factors by which the two accumulators must be multiplied when `other` is merged into this
  // state.
  struct Scales {
    float self;
    float other;
  };

  TANDEM_HOST_DEVICE Scales Merge(const SoftmaxState& other) {
    const float m = max > other.max ? max : other.max;
    const Scales scales = {ExpDiff(max, m), ExpDiff(other.max, m)};
    // An empty side's sum is 0, not scaled: 0 * exp(...) would be fine, but NaN sums must survive a
    // scale of 0.
    sum = (max == kNegInf ? sum : sum * scales.self) +
          (other.max == kNegInf ? other.sum : other.sum * scales.other);
    max = m;
    return scales;
  }

  // 1 / sum, or 0 for an empty row (whose accumulator is 0 as well).
  TANDEM_HOST_DEVICE float Normalizer() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }
  TANDEM_HOST_DEVICE float LogSumExp() const { return sum == 0.0f ? kNegInf : max + logf(sum); }
};

}  // namespace tandem
