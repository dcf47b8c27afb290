// What the AVX-512 VNNI machines of the two integer products (matmul_gemv_int8_avx512vnni.cc,
// matmul_packed_avx512vnni.cc) share: one 512-bit instruction each. Included inside namespace
// tandem::cpu and its anonymous namespace, within HWY_PUSH_ATTRIBUTES, after x86_intrinsics.h.

#define TANDEM_MACHINE_INLINE static inline __attribute__((always_inline))

struct ZmmMachine {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  TANDEM_MACHINE_INLINE Bytes LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  TANDEM_MACHINE_INLINE Bytes Mask(Bytes x, char mask) {
    return _mm512_and_si512(x, _mm512_set1_epi8(mask));
  }
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
  TANDEM_MACHINE_INLINE Floats Mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
  // x * y + z
  TANDEM_MACHINE_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
    return _mm512_fmadd_ps(x, y, z);
  }
};
