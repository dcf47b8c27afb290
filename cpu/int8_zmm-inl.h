// What the AVX-512 machines of the integer products (matmul_gemv_int8_avx512vnni.cc,
// matmul_packed_avx512vnni.cc) and the expansion for tiles (matmul_amx_expand.cc) share: one
// 512-bit instruction each. Included inside namespace tandem::cpu and its anonymous namespace,
// within HWY_PUSH_ATTRIBUTES, after x86_intrinsics.h.

#define TANDEM_MACHINE_INLINE static inline __attribute__((always_inline))

struct ZmmMachine {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  TANDEM_MACHINE_INLINE Bytes LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  TANDEM_MACHINE_INLINE Bytes Mask(Bytes x, char mask) {
    return _mm512_and_si512(x, _mm512_set1_epi8(mask));
  }
  TANDEM_MACHINE_INLINE Bytes Or(Bytes x, Bytes y) { return _mm512_or_si512(x, y); }
  // Bits move between neighbouring bytes: what is wanted is masked afterwards.
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftRight(Bytes x) {
    return _mm512_srli_epi16(x, kBits);
  }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftLeft(Bytes x) {
    return _mm512_slli_epi16(x, kBits);
  }
  // sum + dot products of four unsigned bytes with four signed bytes.
  TANDEM_MACHINE_INLINE Ints Dot(Ints sum, Bytes u, Bytes s) {
    return _mm512_dpbusd_epi32(sum, u, s);
  }
  TANDEM_MACHINE_INLINE Ints ZeroInts() { return _mm512_setzero_si512(); }
  TANDEM_MACHINE_INLINE Floats ZeroFloats() { return _mm512_setzero_ps(); }
  TANDEM_MACHINE_INLINE Floats ToFloats(Ints x) { return _mm512_cvtepi32_ps(x); }
  // 16 numbers of f16, of unsigned and of signed bytes.
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
  // x * y + z
  TANDEM_MACHINE_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
    return _mm512_fmadd_ps(x, y, z);
  }
};
