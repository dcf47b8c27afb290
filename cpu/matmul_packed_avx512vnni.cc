// The packed integer product with AVX-512 VNNI: vpdpbusd multiplies 64 weights (unsigned) by 4
// activations (signed, broadcast) into 16 32-bit sums, exactly.
#include "cpu/matmul_packed.h"

// GCC 12 takes its own header's undefined registers for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace tandem::cpu {
namespace {

#define TANDEM_MACHINE_INLINE static inline __attribute__((always_inline))

struct Machine {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  using Quad = __m512i;
  static constexpr int kGroups = 2;  // at once
  static constexpr int kRows = StripRows(DotIsa::kAvx512Vnni);

  TANDEM_MACHINE_INLINE Bytes LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  TANDEM_MACHINE_INLINE Bytes Mask(Bytes x, char mask) {
    return _mm512_and_si512(x, _mm512_set1_epi8(mask));
  }
  TANDEM_MACHINE_INLINE Bytes Or(Bytes x, Bytes y) { return _mm512_or_si512(x, y); }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftRight(Bytes x) {
    return _mm512_srli_epi16(x, kBits);
  }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftLeft(Bytes x) {
    return _mm512_slli_epi16(x, kBits);
  }
  TANDEM_MACHINE_INLINE Quad LoadQuad(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return _mm512_set1_epi32(bits);
  }
  template <int kMax>
  TANDEM_MACHINE_INLINE Ints StartFrom(const uint8_t* correction) {
    return LoadQuad(correction);
  }
  TANDEM_MACHINE_INLINE Ints ZeroInts() { return _mm512_setzero_si512(); }
  template <int kMax>
  TANDEM_MACHINE_INLINE void AddDots(Bytes even, Bytes odd, Quad first, Quad second, Ints& sums) {
    sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums, even, first), odd, second);
  }
  TANDEM_MACHINE_INLINE Floats ToFloats(Ints x) { return _mm512_cvtepi32_ps(x); }
  TANDEM_MACHINE_INLINE Floats ZeroFloats() { return _mm512_setzero_ps(); }
  TANDEM_MACHINE_INLINE Floats LoadFloats(const float* p) { return _mm512_loadu_ps(p); }
  TANDEM_MACHINE_INLINE void StoreFloats(Floats x, float* p) { _mm512_storeu_ps(p, x); }
  TANDEM_MACHINE_INLINE Floats LoadHalfFloats(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  TANDEM_MACHINE_INLINE Floats LoadUnsignedBytes(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  TANDEM_MACHINE_INLINE Floats LoadSignedBytes(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  TANDEM_MACHINE_INLINE Floats Mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
  TANDEM_MACHINE_INLINE Floats Broadcast(const uint8_t* p) {
    return _mm512_castsi512_ps(LoadQuad(p));
  }
  TANDEM_MACHINE_INLINE Floats MulScalar(Floats x, const uint8_t* p) {
    return _mm512_mul_ps(x, Broadcast(p));
  }
  TANDEM_MACHINE_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
    return _mm512_fmadd_ps(x, y, z);
  }
  // z - x * scalar
  TANDEM_MACHINE_INLINE Floats SubtractScaled(Floats z, Floats x, const uint8_t* p) {
    return _mm512_fnmadd_ps(x, Broadcast(p), z);
  }
};

#undef TANDEM_MACHINE_INLINE

#include "cpu/matmul_packed_tile-inl.h"

}  // namespace

MultiplyStrip MultiplyStripAvx512Vnni(DType dtype) { return MultiplyStripFor<Machine>(dtype); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
