// Vector helpers shared by the attention kernels, compiled once per target (see simd_targets.h):
// loading f32/f16/bf16 as f32, storing f32 as any of them, and exp.
//
// Include after hwy/highway.h. No include guard in the usual sense: HWY_TARGET_TOGGLE below lets
// the file through once per target.
#if defined(TANDEM_CPU_ATTENTION_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_SIMD_INL_H_
#undef TANDEM_CPU_ATTENTION_SIMD_INL_H_
#else
#define TANDEM_CPU_ATTENTION_SIMD_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/dtype.h"
#include "hwy/highway.h"

#ifndef TANDEM_UNROLL
#if defined(__clang__)
#define TANDEM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TANDEM_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
inline constexpr int kLanes = HWY_LANES(float);
// Without vectors, conversions go through the scalar functions of core/dtype.h.
inline constexpr bool kHasVectors = HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3;

// Keeps a loaded vector that is used several times in a register: GCC would rather repeat the load
// as a memory operand of every use, and loads are what the inner loops have least room for.
HWY_INLINE VF InRegister(VF x) {
#if HWY_TARGET == HWY_AVX3
  asm("" : "+v"(x.raw));
#elif HWY_TARGET == HWY_AVX2
  asm("" : "+x"(x.raw));
#endif
  return x;
}

// The kLanes elements at p (any alignment), as f32. Exact for every storage type.
template <typename T>
HWY_INLINE VF LoadF32(const T* HWY_RESTRICT p) {
  const DF d;
  if constexpr (std::is_same_v<T, float>) {
    return hn::LoadU(d, p);
  } else if constexpr (std::is_same_v<T, BF16>) {
    const hn::Rebind<uint16_t, DF> d16;
    const hn::RebindToUnsigned<DF> d32;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
  } else if constexpr (std::is_same_v<T, int8_t>) {
    const hn::Rebind<int8_t, DF> d8;
    const hn::RebindToSigned<DF> d32;
    return hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, p)));
  } else if constexpr (kHasVectors) {
    const hn::Rebind<hwy::float16_t, DF> d16;
    return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
  } else {
    HWY_ALIGN float x[kLanes];
    for (int i = 0; i < kLanes; ++i) x[i] = ToFloat(p[i]);
    return hn::Load(d, x);
  }
}

// The first n < kLanes elements at p, then zeros; reads nothing beyond them.
template <typename T>
HWY_INLINE VF LoadF32Tail(const T* HWY_RESTRICT p, int n) {
  const DF d;
  if constexpr (std::is_same_v<T, float> && kHasVectors) {
    return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(n)), d, p);
  } else {
    T padded[kLanes] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
    return LoadF32(padded);
  }
}

// n elements of vector number i of a row of n elements in all: the last one may be partial.
template <typename T>
HWY_INLINE VF LoadF32Part(const T* HWY_RESTRICT row, int64_t i, int64_t n) {
  const int64_t left = n - i * kLanes;
  return left >= kLanes ? LoadF32(row + i * kLanes)
                        : LoadF32Tail(row + i * kLanes, static_cast<int>(left));
}

#if HWY_TARGET == HWY_AVX3
// The 8 elements at p and the 8 at q, as f32.
template <typename T>
HWY_INLINE VF LoadTwoHalves(const T* HWY_RESTRICT p, const T* HWY_RESTRICT q) {
  if constexpr (std::is_same_v<T, float>) {
    return VF{
        _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(q), 1)};
  } else if constexpr (std::is_same_v<T, int8_t>) {
    const auto bytes = _mm_unpacklo_epi64(_mm_loadu_si64(p), _mm_loadu_si64(q));
    return VF{_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  } else {
    const auto bits = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(q)), 1);
    if constexpr (std::is_same_v<T, F16>) {
      return VF{_mm512_cvtph_ps(bits)};
    } else {
      return VF{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
    }
  }
}
#endif

// Stores the first n <= kLanes lanes at p, rounding to nearest even.
template <typename T>
HWY_INLINE void StoreF32(VF x, T* HWY_RESTRICT p, int64_t n) {
  const DF d;
  if constexpr (kHasVectors) {
    if (n >= kLanes) {
      if constexpr (std::is_same_v<T, float>) {
        hn::StoreU(x, d, p);
        return;
      } else if constexpr (std::is_same_v<T, F16>) {
        const hn::Rebind<hwy::float16_t, DF> d16;
        hn::StoreU(hn::DemoteTo(d16, x), d16, reinterpret_cast<hwy::float16_t*>(p));
        return;
      } else {
        const hn::Rebind<uint16_t, DF> d16;
        const hn::RebindToUnsigned<DF> du;
        const hn::RebindToSigned<DF> di;
        const auto bits = hn::BitCast(du, x);
        const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
        const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
        // A NaN must not be rounded into infinity: keep its upper half, made quiet.
        const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));
        const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
        hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, hn::ShiftRight<16>(result))), d16,
                   reinterpret_cast<uint16_t*>(p));
        return;
      }
    }
  }
  HWY_ALIGN float lanes[kLanes];
  hn::Store(x, d, lanes);
  for (int64_t i = 0; i < n && i < kLanes; ++i) p[i] = FromFloat<T>(lanes[i]);
}

// exp(x) for x <= 0 (and slightly above); -inf and anything below the smallest normal result give
// 0; NaN stays NaN. Error below 1 ulp for x > -10, where results matter beside the 1 of the largest
// score, growing to 2.5 ulp at -87 (without fused multiply-add: to 40 ulp there).
//
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(x) = 2^n * p(r), with p of degree 6 fitted for least
// relative error among polynomials 1 + r + ... (error 3e-9).
HWY_INLINE VF ExpNonPositive(VF x) {
  const DF d;
  const hn::RebindToSigned<DF> di;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits, here with the
  // bias of the exponent field already added.
  const VF magic = hn::Set(d, 12582912.0f + 127.0f);
  const VF shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341f), magic);
  const VF n = hn::Sub(shifted, magic);
  const VF r = hn::NegMulAdd(n, hn::Set(d, 0.693147180559945309f), x);
  VF p = hn::Set(d, 1.3814598366e-3f);
  p = hn::MulAdd(p, r, hn::Set(d, 8.3687168981e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1668388051e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666520632e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.9999993448e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const VF power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.33654f)), hn::Mul(p, power));
}

// tanh(x), error below 2 ulp; NaN stays NaN.
//
// |x| < 0.625: x + x * z * p(z) with z = x^2, p of degree 4 fitted for least relative error (4e-9).
// Beyond, (1 - e) / (1 + e) with e = exp(-2 |x|) loses nothing to cancellation.
HWY_INLINE VF Tanh(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  const VF magnitude = hn::Abs(x);
  const VF z = hn::Mul(x, x);
  VF p = hn::Set(d, -5.7049809e-3f);
  p = hn::MulAdd(p, z, hn::Set(d, 2.0639082e-2f));
  p = hn::MulAdd(p, z, hn::Set(d, -5.3739713e-2f));
  p = hn::MulAdd(p, z, hn::Set(d, 1.3331442e-1f));
  p = hn::MulAdd(p, z, hn::Set(d, -3.3333282e-1f));
  const VF small = hn::MulAdd(hn::Mul(p, z), x, x);
  const VF e = ExpNonPositive(hn::Mul(magnitude, hn::Set(d, -2.0f)));
  const VF large = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, large);
}

// exp(s - m) as in core/ops/online_softmax.h: m = -inf (no key seen) gives 0 for every s = -inf.
HWY_INLINE VF ExpDiffVec(VF s, VF m) {
  const DF d;
  const VF neg_inf = hn::Set(d, -std::numeric_limits<float>::infinity());
  return ExpNonPositive(hn::Sub(s, hn::IfThenZeroElse(hn::Eq(m, neg_inf), m)));
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
