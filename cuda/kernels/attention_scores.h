// Scores of attention for the kernels that work on tiles: what becomes of a product of q and k
// before the softmax. Two kinds, chosen per call (HasPlainScores in attention_setup.h), so that
// the usual one pays nothing for the variants:
//
//   PlainScores     scale * dot, scale > 0. The score is the product itself, and the scale is part
//                   of the exponent: exp2(factor * (score - max)).
//   VariantScores   any scale, soft cap, ALiBi, bias, mask: the whole score, times log2(e).
//
// Both are in a form that softmax takes as exp2(factor * (score - max)); a score of -inf
// is that of a hidden key. The rule (MaskRule) is not applied here: a kernel decides per tile
// whether it must be.
#pragma once

#include <cstdint>

#include "core/ops/online_softmax.h"
#include "cuda/device/convert.h"
#include "cuda/device/math.h"
#include "cuda/device/target.h"
#include "cuda/kernels/attention_params.h"
#include "cuda/kernels/attention_sequence.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// Which row of the call a row of scores belongs to.
struct ScorePlace {
  int64_t batch;     // sequence
  int64_t head;      // of the queries
  int64_t row;       // of q: as a bias or mask counts them
  int64_t position;  // of the query among the keys
};

struct PlainScores {
  static constexpr bool kVariants = false;
  // What a thread keeps of a row.
  struct Row {
    float factor;  // > 0
  };
  // q_factor: what the products must be multiplied with because the kernel scaled its copy of q.
  __device__ static Row RowOf(const AttentionParams& p, const ScorePlace&, float q_factor) {
    return {p.scale * kLog2E * q_factor};
  }
  __device__ static float Factor(const Row& row) { return row.factor; }
  __device__ static bool Shows(const AttentionParams&, const Row&, int64_t) { return true; }
  __device__ static float Score(const AttentionParams&, const Row&, float dot, int64_t) {
    return dot;
  }
};

struct VariantScores {
  static constexpr bool kVariants = true;
  struct Row {
    float q_factor, slope;
    int64_t position;
    int64_t bias, mask;  // offsets of the row's first element
  };
  __device__ static Row RowOf(const AttentionParams& p, const ScorePlace& at, float q_factor) {
    return {q_factor, SlopeOf(p, at.head), at.position,
            p.bias.present() ? BroadcastOffset(p.bias, at.batch, at.head, at.row, 0) : 0,
            p.mask.present() ? BroadcastOffset(p.mask, at.batch, at.head, at.row, 0) : 0};
  }
  __device__ static float Factor(const Row&) { return 1.0f; }
  // Does the mask, if there is one, show key j? j must be one of the keys: an element is read.
  __device__ static bool Shows(const AttentionParams& p, const Row& row, int64_t j) {
    if (!p.mask.present()) return true;
    if (p.mask.dtype == DType::kBool) {
      return p.mask.As<const uint8_t>()[row.mask + j * p.mask.strides[3]] != 0;
    }
    const uint32_t word = p.mask.As<const uint32_t>()[row.mask + j / 32 * p.mask.strides[3]];
    return (word >> (j % 32) & 1u) != 0;
  }
  // Of a key that rule and mask show: only then does the element of the bias count. -inf if the
  // bias hides the key.
  __device__ static float Score(const AttentionParams& p, const Row& row, float dot, int64_t j) {
    float bias = 0.0f;
    if (p.bias.present()) {
      bias = LoadNumber(p.bias, row.bias + j * p.bias.strides[3]);
      if (bias == kNegInf) return kNegInf;  // whatever the product
    }
    return (ScoreOf(p, row.q_factor * dot, row.slope, row.position, j) + bias) * kLog2E;
  }
};

// Is one of the two numbers an infinity or a NaN? T = F16 or BF16.
template <typename T>
__device__ inline bool AnyNonFinite(uint32_t pair) {
  // Adding one to an exponent of all ones carries into the place of the sign.
  constexpr uint32_t kExponent = std::is_same_v<T, F16> ? 0x7C00u : 0x7F80u;
  constexpr uint32_t kOne = std::is_same_v<T, F16> ? 0x0400u : 0x0080u;
  return (((pair & (kExponent << 16 | kExponent)) + (kOne << 16 | kOne)) & 0x80008000u) != 0;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
