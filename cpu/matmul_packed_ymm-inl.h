// 64 bytes, 16 integers and 16 floats as two AVX2 vectors each: what the AVX2 and the AVX-VNNI
// machine of matmul_packed_tile-inl.h share. Included within their anonymous namespaces.

#include "cpu/int8_ymm-inl.h"

struct YmmMachine {
  struct Bytes {
    __m256i low, high;
  };
  struct Ints {
    __m256i low, high;
  };
  struct Floats {
    __m256 low, high;
  };
  using Quad = __m256i;
  static constexpr int kGroups = 1;  // at once: two would not fit 16 registers

  TANDEM_MACHINE_INLINE Bytes LoadBytes(const uint8_t* p) {
    return {Ymm::LoadBytes(p), Ymm::LoadBytes(p + 32)};
  }
  TANDEM_MACHINE_INLINE Bytes Mask(Bytes x, char mask) {
    return {Ymm::Mask(x.low, mask), Ymm::Mask(x.high, mask)};
  }
  TANDEM_MACHINE_INLINE Bytes Or(Bytes x, Bytes y) {
    return {Ymm::Or(x.low, y.low), Ymm::Or(x.high, y.high)};
  }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftRight(Bytes x) {
    return {Ymm::ShiftRight<kBits>(x.low), Ymm::ShiftRight<kBits>(x.high)};
  }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftLeft(Bytes x) {
    return {Ymm::ShiftLeft<kBits>(x.low), Ymm::ShiftLeft<kBits>(x.high)};
  }
  TANDEM_MACHINE_INLINE Quad LoadQuad(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return _mm256_set1_epi32(bits);
  }
  TANDEM_MACHINE_INLINE Ints ZeroInts() { return {Ymm::ZeroInts(), Ymm::ZeroInts()}; }
  TANDEM_MACHINE_INLINE Floats ToFloats(Ints x) {
    return {Ymm::ToFloats(x.low), Ymm::ToFloats(x.high)};
  }
  TANDEM_MACHINE_INLINE Floats ZeroFloats() { return {Ymm::ZeroFloats(), Ymm::ZeroFloats()}; }
  TANDEM_MACHINE_INLINE Floats LoadFloats(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
  }
  TANDEM_MACHINE_INLINE void StoreFloats(Floats x, float* p) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  TANDEM_MACHINE_INLINE Floats LoadHalfFloats(const uint8_t* p) {
    return {_mm256_cvtph_ps(Ymm::LoadHalfVector(p)), _mm256_cvtph_ps(Ymm::LoadHalfVector(p + 16))};
  }
  TANDEM_MACHINE_INLINE Floats LoadUnsignedBytes(const uint8_t* p) {
    const __m128i x = Ymm::LoadHalfVector(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
  }
  TANDEM_MACHINE_INLINE Floats LoadSignedBytes(const uint8_t* p) {
    const __m128i x = Ymm::LoadHalfVector(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
  }
  TANDEM_MACHINE_INLINE Floats Mul(Floats x, Floats y) {
    return {Ymm::Mul(x.low, y.low), Ymm::Mul(x.high, y.high)};
  }
  TANDEM_MACHINE_INLINE __m256 Broadcast(const uint8_t* p) {
    return _mm256_castsi256_ps(LoadQuad(p));
  }
  TANDEM_MACHINE_INLINE Floats MulScalar(Floats x, const uint8_t* p) {
    const __m256 y = Broadcast(p);
    return {Ymm::Mul(x.low, y), Ymm::Mul(x.high, y)};
  }
  TANDEM_MACHINE_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
    return {Ymm::MulAdd(x.low, y.low, z.low), Ymm::MulAdd(x.high, y.high, z.high)};
  }
  // z - x * scalar
  TANDEM_MACHINE_INLINE Floats SubtractScaled(Floats z, Floats x, const uint8_t* p) {
    const __m256 y = Broadcast(p);
    return {_mm256_fnmadd_ps(x.low, y, z.low), _mm256_fnmadd_ps(x.high, y, z.high)};
  }
};
