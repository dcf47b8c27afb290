// What the AVX2 and AVX-VNNI machines of the two integer products (matmul_gemv_int8_ymm-inl.h,
// matmul_packed_ymm-inl.h, which uses two of these vectors for one of 512 bits) share: one 256-bit
// instruction each. Included inside namespace tandem::cpu and its anonymous namespace, within
// HWY_PUSH_ATTRIBUTES, after x86_intrinsics.h.

#define TANDEM_MACHINE_INLINE static inline __attribute__((always_inline))

struct Ymm {
  using Bytes = __m256i;
  using Ints = __m256i;
  using Floats = __m256;

  TANDEM_MACHINE_INLINE __m128i LoadHalfVector(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  TANDEM_MACHINE_INLINE Bytes LoadBytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  TANDEM_MACHINE_INLINE Bytes Mask(Bytes x, char mask) {
    return _mm256_and_si256(x, _mm256_set1_epi8(mask));
  }
  TANDEM_MACHINE_INLINE Bytes Or(Bytes x, Bytes y) { return _mm256_or_si256(x, y); }
  // Bits move between neighbouring bytes: what is wanted is masked afterwards.
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftRight(Bytes x) {
    return _mm256_srli_epi16(x, kBits);
  }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftLeft(Bytes x) {
    return _mm256_slli_epi16(x, kBits);
  }
  TANDEM_MACHINE_INLINE Ints ZeroInts() { return _mm256_setzero_si256(); }
  TANDEM_MACHINE_INLINE Floats ZeroFloats() { return _mm256_setzero_ps(); }
  TANDEM_MACHINE_INLINE Floats ToFloats(Ints x) { return _mm256_cvtepi32_ps(x); }
  TANDEM_MACHINE_INLINE Floats Mul(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
  // x * y + z
  TANDEM_MACHINE_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
    return _mm256_fmadd_ps(x, y, z);
  }
};
