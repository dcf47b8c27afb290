// Rows of f32, f16 or bf16 seen as f32 vectors: loads, stores, tails, exp. Included per target,
// after hwy/highway.h (see simd_targets.h).
//
// Conversions give the bits of core/dtype.h on every target. Processors' f16 instructions do, but
// for NaN payloads; Highway's bf16 and scalar f16 conversions do not round to nearest, hence ours.

#if defined(TANDEM_CPU_FLOAT_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_FLOAT_VECTORS_INL_H_
#undef TANDEM_CPU_FLOAT_VECTORS_INL_H_
#else
#define TANDEM_CPU_FLOAT_VECTORS_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;
using HalfTag = hn::Rebind<uint16_t, FloatTag>;  // bits of as many 16-bit floats
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(FloatTag()));

HWY_INLINE FloatVec LoadFloats(const float* p) { return hn::LoadU(FloatTag(), p); }

HWY_INLINE FloatVec LoadFloats(const BF16* p) {
  const FloatTag d;
  const hn::Rebind<uint32_t, FloatTag> du;
  const auto bits = hn::LoadU(HalfTag(), reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

HWY_INLINE FloatVec LoadFloats(const F16* p) {
  const FloatTag d;
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  HWY_ALIGN float values[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) values[i] = ToFloat(p[i]);
  return hn::Load(d, values);
#else
  const auto bits = hn::LoadU(HalfTag(), reinterpret_cast<const uint16_t*>(p));
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, FloatTag>(), bits));
#endif
}

// One number: one instruction where there is one.
HWY_INLINE float WidenHalf(F16 x) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  return _cvtsh_ss(x.bits);
#else
  return ToFloat(x);
#endif
}

HWY_INLINE void StoreFloats(FloatVec v, float* p) { hn::StoreU(v, FloatTag(), p); }

HWY_INLINE void StoreFloats(FloatVec v, BF16* p) {
  const hn::Rebind<uint32_t, FloatTag> du;
  const auto bits = hn::BitCast(du, v);
  const auto lsb = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(lsb, hn::Set(du, 0x7FFFu))));
  const auto quiet_nan = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40u));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(v));
  const auto result = hn::IfThenElse(is_nan, quiet_nan, rounded);
  hn::StoreU(hn::TruncateTo(HalfTag(), result), HalfTag(), reinterpret_cast<uint16_t*>(p));
}

HWY_INLINE void StoreFloats(FloatVec v, F16* p) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  HWY_ALIGN float values[kLanes];
  hn::Store(v, FloatTag(), values);
  for (int64_t i = 0; i < kLanes; ++i) p[i] = ToF16(values[i]);
#else
  const HalfTag dh;
  const auto bits = hn::BitCast(dh, hn::DemoteTo(hn::Rebind<hwy::float16_t, FloatTag>(), v));
  const auto is_nan =
      hn::Gt(hn::And(bits, hn::Set(dh, uint16_t{0x7FFF})), hn::Set(dh, uint16_t{0x7C00}));
  const auto canonical = hn::And(bits, hn::Set(dh, uint16_t{0xFE00}));
  hn::StoreU(hn::IfThenElse(is_nan, canonical, bits), dh, reinterpret_cast<uint16_t*>(p));
#endif
}

// The first `count` < kLanes elements; the other lanes are 0.
template <typename T>
HWY_INLINE FloatVec LoadTail(const T* p, int64_t count) {
  HWY_ALIGN T values[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = p[i];
  return LoadFloats(values);
}

template <typename T>
HWY_INLINE void StoreTail(FloatVec v, T* p, int64_t count) {
  HWY_ALIGN T values[kLanes];
  StoreFloats(v, values);
  for (int64_t i = 0; i < count; ++i) p[i] = values[i];
}

// e^x with at most 1 ulp of error; NaN stays NaN, -inf gives 0, +inf gives +inf.
HWY_INLINE FloatVec ExpFloats(FloatVec x) {
  const FloatTag d;
  const FloatVec bounded = hn::Max(hn::Min(x, hn::Set(d, 89.0f)), hn::Set(d, -105.0f));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, bounded));
}

// out[i] = x[i]
template <typename X, typename Out>
void ConvertSpan(const X* x, Out* out, int64_t count) {
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) StoreFloats(LoadFloats(x + n), out + n);
  if (n < count) StoreTail(LoadTail(x + n, count - n), out + n, count - n);
}
template <typename T>
void ConvertSpan(const T* x, T* out, int64_t count) {
  if (count > 0 && x != out) std::memcpy(out, x, static_cast<size_t>(count) * sizeof(T));
}

// out[i] = fn(a[i], b[i]) on vectors. out may be a or b.
template <typename X, typename Out, typename Fn>
void CombineSpans(const X* a, const X* b, Out* out, int64_t count, Fn fn) {
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) {
    StoreFloats(fn(LoadFloats(a + n), LoadFloats(b + n)), out + n);
  }
  if (n < count) {
    const FloatVec result = fn(LoadTail(a + n, count - n), LoadTail(b + n, count - n));
    StoreTail(result, out + n, count - n);
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_FLOAT_VECTORS_INL_H_
