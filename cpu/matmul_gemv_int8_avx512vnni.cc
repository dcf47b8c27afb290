// Integer dot products of stored weights with AVX-512 VNNI: vpdpbusd adds four products of unsigned
// by signed bytes to each of 16 sums, exactly. Signed weights (q8_0) become unsigned by flipping
// their sign bit, an offset of 128. Inner loops: matmul_gemv_int8-inl.h.
#include "cpu/matmul_gemv_int8.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace tandem::cpu {
namespace {

#include "cpu/int8_zmm-inl.h"

struct Machine : ZmmMachine {
  static constexpr int kBlocks = 4;

  TANDEM_MACHINE_INLINE Ints LoadInts(const uint8_t* p) { return _mm512_loadu_si512(p); }
  TANDEM_MACHINE_INLINE Floats LoadFloats(const uint8_t* p) { return _mm512_loadu_ps(p); }
  TANDEM_MACHINE_INLINE __m128i LoadPiece(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  TANDEM_MACHINE_INLINE __m256i LoadTwoPieces(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  // 16 bytes from each of four places, kStride apart.
  template <int kStride>
  TANDEM_MACHINE_INLINE Bytes LoadPieces(const uint8_t* p) {
    Bytes v = _mm512_castsi128_si512(LoadPiece(p));
    v = _mm512_inserti32x4(v, LoadPiece(p + kStride), 1);
    v = _mm512_inserti32x4(v, LoadPiece(p + 2 * kStride), 2);
    return _mm512_inserti32x4(v, LoadPiece(p + 3 * kStride), 3);
  }
  // 32 bytes from each of four places: their first and their second halves.
  template <int kStride>
  TANDEM_MACHINE_INLINE void LoadHalves(const uint8_t* p, Bytes& first, Bytes& second) {
    const Bytes v01 =
        _mm512_inserti64x4(_mm512_castsi256_si512(LoadTwoPieces(p)), LoadTwoPieces(p + kStride), 1);
    const Bytes v23 = _mm512_inserti64x4(_mm512_castsi256_si512(LoadTwoPieces(p + 2 * kStride)),
                                         LoadTwoPieces(p + 3 * kStride), 1);
    first = _mm512_shuffle_i64x2(v01, v23, 0x88);
    second = _mm512_shuffle_i64x2(v01, v23, 0xDD);
  }
  // Of 64 bytes, pieces 0 0 2 2 and pieces 1 1 3 3.
  template <int kSet>
  TANDEM_MACHINE_INLINE void LoadPairs(const uint8_t* p, Bytes& first, Bytes& second) {
    const Bytes v = LoadBytes(p);
    first = _mm512_shuffle_i64x2(v, v, 0xA0);
    second = _mm512_shuffle_i64x2(v, v, 0xF5);
  }
  TANDEM_MACHINE_INLINE Bytes Repeat(const uint8_t* p) {
    return _mm512_broadcast_i32x4(LoadPiece(p));
  }
  // x | (y & mask)
  TANDEM_MACHINE_INLINE Bytes OrMasked(Bytes x, Bytes y, char mask) {
    return _mm512_ternarylogic_epi64(x, y, _mm512_set1_epi8(mask), 0xF8);
  }
  // Each piece by a count of its own; negative: to the left.
  template <int k0, int k1, int k2, int k3>
  TANDEM_MACHINE_INLINE Bytes ShiftPieces(Bytes x) {
    return _mm512_rorv_epi32(
        x, _mm512_setr_epi32(k0, k0, k0, k0, k1, k1, k1, k1, k2, k2, k2, k2, k3, k3, k3, k3));
  }
  TANDEM_MACHINE_INLINE Ints DotSigned(Bytes first, Bytes second, const uint8_t* x_first,
                                       const uint8_t* x_second, const uint8_t* start) {
    const Bytes sign = _mm512_set1_epi8(-128);
    return Dot(Dot(LoadInts(start), _mm512_xor_si512(first, sign), LoadBytes(x_first)),
               _mm512_xor_si512(second, sign), LoadBytes(x_second));
  }
  TANDEM_MACHINE_INLINE Ints MulInts(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  TANDEM_MACHINE_INLINE Ints AddInts(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  TANDEM_MACHINE_INLINE float Sum(Floats x) { return _mm512_reduce_add_ps(x); }

  TANDEM_MACHINE_INLINE uint64_t LoadHalf(const uint8_t* p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return bits;
  }
  // f16 from four places, each in the four lanes of its block.
  template <int kStride>
  TANDEM_MACHINE_INLINE Floats LoadScales(const uint8_t* p) {
    const uint64_t bits = LoadHalf(p) | LoadHalf(p + kStride) << 16 |
                          LoadHalf(p + 2 * kStride) << 32 | LoadHalf(p + 3 * kStride) << 48;
    const __m128 four = _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(bits)));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                 _mm512_castps128_ps512(four));
  }
  TANDEM_MACHINE_INLINE Floats BroadcastHalf(const uint8_t* p) {
    return _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(LoadHalf(p)))));
  }
  // c + a * what is at `from`.
  TANDEM_MACHINE_INLINE Floats AddUpperProduct(Floats a, const uint8_t* from, Floats c) {
    return MulAdd(a, LoadFloats(from), c);
  }

  // q4_k, q5_k: d * scale of the eight blocks, dmin * min of the eight blocks.
  struct MinScales {
    Floats all;
    __attribute__((always_inline)) explicit MinScales(const uint8_t* w) {
      uint32_t d, a, b, c;
      __builtin_memcpy(&d, w, 4);
      __builtin_memcpy(&a, w + 4, 4);
      __builtin_memcpy(&b, w + 8, 4);
      __builtin_memcpy(&c, w + 12, 4);
      const uint32_t scale_high = (c & 0x0F0F0F0Fu) | ((a >> 2) & 0x30303030u);
      const uint32_t min_high = ((c >> 4) & 0x0F0F0F0Fu) | ((b >> 2) & 0x30303030u);
      const uint64_t scale = (a & 0x3F3F3F3Fu) | uint64_t{scale_high} << 32;
      const uint64_t min = (b & 0x3F3F3F3Fu) | uint64_t{min_high} << 32;
      const __m128i bytes = _mm_set_epi64x(static_cast<int64_t>(min), static_cast<int64_t>(scale));
      const __m512i places = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
      const __m128 factors = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(d)));
      all = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)),
                          _mm512_permutexvar_ps(places, _mm512_castps128_ps512(factors)));
    }
    template <int kQuad, int kSet>
    __attribute__((always_inline)) Floats Of() const {
      constexpr int q = kQuad;
      return _mm512_permutexvar_ps(
          _mm512_setr_epi32(q, q, q, q, q + 2, q + 2, q + 2, q + 2, q + 4, q + 4, q + 4, q + 4,
                            q + 6, q + 6, q + 6, q + 6),
          all);
    }
    __attribute__((always_inline)) Floats AddCorrection(const uint8_t* from, Floats sum) const {
      return MulAdd(all, LoadFloats(from), sum);
    }
  };

  // q6_k: whole-numbered scales of the 16 half blocks, and d. p: at the scales.
  struct SixScales {
    Ints all;
    Floats d;
    __attribute__((always_inline)) explicit SixScales(const uint8_t* p)
        : all(_mm512_cvtepi8_epi32(LoadPiece(p))), d(BroadcastHalf(p + 16)) {}
    template <int kQuad, int kSet, int kHalf>
    __attribute__((always_inline)) Ints Of() const {
      constexpr int s = 4 * kQuad + kHalf;
      return _mm512_permutexvar_epi32(
          _mm512_setr_epi32(s, s, s, s, s + 2, s + 2, s + 2, s + 2, s + 8, s + 8, s + 8, s + 8,
                            s + 10, s + 10, s + 10, s + 10),
          all);
    }
    __attribute__((always_inline)) Floats AddCorrection(const uint8_t* from, Floats sum) const {
      return MulAdd(Mul(ToFloats(all), d), LoadFloats(from), sum);
    }
  };
};

#include "cpu/matmul_gemv_int8-inl.h"

}  // namespace

Int8Strip Int8StripAvx512Vnni(DType dtype, int64_t rows) { return StripOf<Machine>(dtype, rows); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
