// GGUF blocks, quantised and expanded with vectors: the same bytes as blocks.h. Those of 256
// elements are in super_block_vectors-inl.h.
// Included per target, after hwy/highway.h.

#if defined(TANDEM_CPU_BLOCK_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_BLOCK_VECTORS_INL_H_
#undef TANDEM_CPU_BLOCK_VECTORS_INL_H_
#else
#define TANDEM_CPU_BLOCK_VECTORS_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "cpu/blocks.h"
#include "cpu/float_vectors-inl.h"
#include "cpu/super_block_vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

using IntTag = hn::RebindToSigned<FloatTag>;
using IntVec = hn::Vec<IntTag>;

template <typename Out>
HWY_INLINE void DequantizeBlockTo(const BlockQ8_0& block, Out out) {
  const FloatTag d;
  const hn::Rebind<int8_t, FloatTag> bytes;
  const FloatVec scale = hn::Set(d, ToFloat(block.d));
  for (int64_t i = 0; i < BlockQ8_0::kLength; i += kLanes) {
    const IntVec q = hn::PromoteTo(IntTag(), hn::LoadU(bytes, block.q + i));
    StoreFloats(hn::Mul(hn::ConvertTo(d, q), scale), out + i);
  }
}

template <typename Out>
HWY_INLINE void DequantizeBlockTo(const BlockQ4_0& block, Out out) {
  constexpr int64_t kHalf = BlockQ4_0::kLength / 2;
  const FloatTag d;
  const IntTag di;
  const hn::Rebind<uint8_t, FloatTag> bytes;
  const FloatVec scale = hn::Set(d, ToFloat(block.d));
  const IntVec eight = hn::Set(di, 8);
  for (int64_t i = 0; i < kHalf; i += kLanes) {
    const IntVec pair = hn::PromoteTo(di, hn::LoadU(bytes, block.q + i));
    const IntVec low = hn::Sub(hn::And(pair, hn::Set(di, 15)), eight);
    const IntVec high = hn::Sub(hn::ShiftRight<4>(pair), eight);
    StoreFloats(hn::Mul(hn::ConvertTo(d, low), scale), out + i);
    StoreFloats(hn::Mul(hn::ConvertTo(d, high), scale), out + kHalf + i);
  }
}

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

template <typename Block>
void QuantizeBlockFrom(const float* x, Block& block) {
  QuantizeBlock(x, block);
}

#else

// As integers where low <= x <= high, `otherwise` elsewhere (NaN too).
HWY_INLINE IntVec IntegersOr(FloatVec x, float low, float high, int32_t otherwise) {
  const FloatTag d;
  const IntTag di;
  const auto inside = hn::And(hn::Ge(x, hn::Set(d, low)), hn::Le(x, hn::Set(d, high)));
  return hn::IfThenElse(hn::RebindMask(di, inside), hn::ConvertTo(di, x), hn::Set(di, otherwise));
}

HWY_INLINE void QuantizeBlockFrom(const float* x, BlockQ8_0& block) {
  const FloatTag d;
  FloatVec largest = hn::Zero(d);
  for (int64_t i = 0; i < BlockQ8_0::kLength; i += kLanes) {
    const FloatVec magnitude = hn::Abs(LoadFloats(x + i));
    largest = hn::IfThenElse(hn::Gt(magnitude, largest), magnitude, largest);  // ignores NaN
  }
  const float scale = hn::GetLane(hn::MaxOfLanes(d, largest)) / 127.0f;
  block.d = ToF16(scale);
  const FloatVec inverse = hn::Set(d, BlockScaleInverse(scale));
  // Rounds half away from zero: adding the largest float below 1/2 reaches the next integer from
  // exactly one half on, because that sum is rounded to even.
  const FloatVec almost_half = hn::Set(d, 0.49999997f);
  const hn::Rebind<int8_t, FloatTag> bytes;
  for (int64_t i = 0; i < BlockQ8_0::kLength; i += kLanes) {
    const FloatVec v = hn::Mul(LoadFloats(x + i), inverse);
    const FloatVec rounded = hn::Trunc(hn::Add(v, hn::CopySign(almost_half, v)));
    hn::StoreU(hn::DemoteTo(bytes, IntegersOr(rounded, -127.0f, 127.0f, 0)), bytes, block.q + i);
  }
}

HWY_INLINE void QuantizeBlockFrom(const float* x, BlockQ4_0& block) {
  constexpr int64_t kHalf = BlockQ4_0::kLength / 2;
  const FloatTag d;
  FloatVec upper = hn::Zero(d), lower = hn::Zero(d);
  for (int64_t i = 0; i < BlockQ4_0::kLength; i += kLanes) {
    const FloatVec v = LoadFloats(x + i);
    upper = hn::IfThenElse(hn::Gt(v, upper), v, upper);
    lower = hn::IfThenElse(hn::Lt(v, lower), v, lower);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, upper));
  const float smallest = hn::GetLane(hn::MinOfLanes(d, lower));
  float extreme = largest > -smallest ? largest : smallest;
  if (largest == -smallest) {  // both signs reach the magnitude: the first one counts
    extreme = largest;
    for (int i = 0; i < BlockQ4_0::kLength; ++i) {
      if (std::fabs(x[i]) == largest) {
        extreme = x[i];
        break;
      }
    }
  }
  const float scale = extreme / -8.0f;
  block.d = ToF16(scale);
  const FloatVec inverse = hn::Set(d, BlockScaleInverse(scale));
  const FloatVec offset = hn::Set(d, 8.5f);
  const IntTag di;
  const IntVec fifteen = hn::Set(di, 15);
  const hn::Rebind<uint8_t, FloatTag> bytes;
  for (int64_t i = 0; i < kHalf; i += kLanes) {
    const FloatVec low = hn::MulAdd(LoadFloats(x + i), inverse, offset);
    const FloatVec high = hn::MulAdd(LoadFloats(x + kHalf + i), inverse, offset);
    const IntVec q_low = hn::Min(IntegersOr(low, 0.0f, 17.0f, 8), fifteen);
    const IntVec q_high = hn::Min(IntegersOr(high, 0.0f, 17.0f, 8), fifteen);
    const IntVec pair = hn::Or(q_low, hn::ShiftLeft<4>(q_high));
    hn::StoreU(hn::DemoteTo(bytes, pair), bytes, block.q + i);
  }
}

#endif

// blocks[i] = the quantised x[i * kLength ..]. Overloaded for q4_k and q5_k.
template <typename Block>
void QuantizeBlocksFrom(const float* x, Block* blocks, int64_t count) {
  for (int64_t i = 0; i < count; ++i) QuantizeBlockFrom(x + i * Block::kLength, blocks[i]);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_BLOCK_VECTORS_INL_H_
