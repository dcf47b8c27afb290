// Activations rounded to 8 bits for integer dot products with block-quantised weights.
//
// Per block of 32 elements of K: scale = max|x| / 127, q = x / scale rounded to nearest even, so an
// element is off by at most max|x| / 254. The sums of q, of the first and the second half, correct
// for weights stored with an offset (q8_0 as q + 128, q4_0 as q + 8, ...). A block with a NaN or an
// infinity gets a NaN scale and zeros: whatever it is multiplied by becomes NaN.
// Included per target, after hwy/highway.h.

#if defined(TANDEM_CPU_QUANTIZE_ACTIVATIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_QUANTIZE_ACTIVATIONS_INL_H_
#undef TANDEM_CPU_QUANTIZE_ACTIVATIONS_INL_H_
#else
#define TANDEM_CPU_QUANTIZE_ACTIVATIONS_INL_H_
#endif

#include <bit>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int64_t kActivationBlock = 32;  // elements

// x[32] -> q[32], *scale, sums[2].
HWY_INLINE void QuantizeActivations(const float* x, int8_t* q, float* scale, int32_t* sums) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> bytes;
  constexpr int64_t kStep = HWY_LANES(float);
  // As integers, magnitudes of floats keep their order, and what is not finite comes last.
  auto largest = hn::Zero(di);
  for (int64_t i = 0; i < kActivationBlock; i += kStep) {
    largest = hn::Max(largest, hn::BitCast(di, hn::Abs(hn::LoadU(d, x + i))));
  }
  const int32_t bits = hn::GetLane(hn::MaxOfLanes(di, largest));
  constexpr int32_t kInfinity = 0x7F800000;
  float magnitude = std::bit_cast<float>(bits);
  float enlarge = 1.0f;
  if (bits >= kInfinity || bits == 0) {
    *scale = bits == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    magnitude = std::numeric_limits<float>::infinity();  // its inverse is 0
  } else {
    *scale = magnitude / 127.0f;
    if (magnitude < 0x1p-100f) {  // 127 / magnitude could overflow
      enlarge = 0x1p64f;
      magnitude *= enlarge;
    }
  }
  const auto inverse = hn::Set(d, 127.0f / magnitude);
  const auto factor = hn::Set(d, enlarge);
  const bool finite = bits < kInfinity;
  for (int half = 0; half < 2; ++half) {
    auto sum = hn::Zero(di);
    const int64_t begin = half * kActivationBlock / 2;
    for (int64_t i = begin; i < begin + kActivationBlock / 2; i += kStep) {
      const auto v = hn::Mul(hn::Mul(hn::LoadU(d, x + i), factor), inverse);
      const auto rounded = finite ? hn::NearestInt(v) : hn::Zero(di);
      hn::StoreU(hn::DemoteTo(bytes, rounded), bytes, q + i);
      sum = hn::Add(sum, rounded);
    }
    sums[half] = hn::GetLane(hn::SumOfLanes(di, sum));
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_QUANTIZE_ACTIVATIONS_INL_H_
