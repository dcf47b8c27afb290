// The Machine of matmul_gemv_int8-inl.h for 256-bit vectors, but for the dot product itself, which
// the including file gives as a struct DotProduct:
//   static Ints Dot(Ints sum, Bytes u, Bytes s)      u unsigned below 64, s signed
//   static Ints DotSigned(first, second, x_first, x_second, start)      see q8_0
// Included inside namespace tandem::cpu and its anonymous namespace.

#include "cpu/int8_ymm-inl.h"

template <class DotProduct>
struct YmmMachine : Ymm {
  static constexpr int kBlocks = 2;

  TANDEM_MACHINE_INLINE Ints LoadInts(const uint8_t* p) { return LoadBytes(p); }
  TANDEM_MACHINE_INLINE Floats LoadFloats(const uint8_t* p) {
    return _mm256_castsi256_ps(LoadBytes(p));
  }
  // 16 bytes from each of two places, kStride apart.
  template <int kStride>
  TANDEM_MACHINE_INLINE Bytes LoadPieces(const uint8_t* p) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(LoadHalfVector(p)),
                                   LoadHalfVector(p + kStride), 1);
  }
  // 32 bytes from each of two places: their first and their second halves.
  template <int kStride>
  TANDEM_MACHINE_INLINE void LoadHalves(const uint8_t* p, Bytes& first, Bytes& second) {
    const Bytes v0 = LoadBytes(p), v1 = LoadBytes(p + kStride);
    first = _mm256_permute2x128_si256(v0, v1, 0x20);
    second = _mm256_permute2x128_si256(v0, v1, 0x31);
  }
  // Of the kSet-th 32 bytes, piece 0 twice and piece 1 twice.
  template <int kSet>
  TANDEM_MACHINE_INLINE void LoadPairs(const uint8_t* p, Bytes& first, Bytes& second) {
    first = Repeat(p + 32 * kSet);
    second = Repeat(p + 32 * kSet + 16);
  }
  TANDEM_MACHINE_INLINE Bytes Repeat(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(LoadHalfVector(p));
  }
  // x | (y & mask)
  TANDEM_MACHINE_INLINE Bytes OrMasked(Bytes x, Bytes y, char mask) {
    return _mm256_or_si256(x, Mask(y, mask));
  }
  // The two pieces by a count of their own; negative: to the left. (A count of 32 gives zeros.)
  template <int k0, int k1, int, int>
  TANDEM_MACHINE_INLINE Bytes ShiftPieces(Bytes x) {
    constexpr int r0 = k0 >= 0 ? k0 : 32, r1 = k1 >= 0 ? k1 : 32;
    constexpr int l0 = k0 >= 0 ? 32 : -k0, l1 = k1 >= 0 ? 32 : -k1;
    const Bytes right = _mm256_srlv_epi32(x, _mm256_setr_epi32(r0, r0, r0, r0, r1, r1, r1, r1));
    if constexpr (k0 >= 0 && k1 >= 0) return right;
    return _mm256_or_si256(right,
                           _mm256_sllv_epi32(x, _mm256_setr_epi32(l0, l0, l0, l0, l1, l1, l1, l1)));
  }
  TANDEM_MACHINE_INLINE Ints Dot(Ints sum, Bytes u, Bytes s) { return DotProduct::Dot(sum, u, s); }
  TANDEM_MACHINE_INLINE Ints DotSigned(Bytes first, Bytes second, const uint8_t* x_first,
                                       const uint8_t* x_second, const uint8_t* start) {
    return DotProduct::DotSigned(first, second, LoadBytes(x_first), LoadBytes(x_second), start);
  }
  TANDEM_MACHINE_INLINE Ints MulInts(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
  TANDEM_MACHINE_INLINE Ints AddInts(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  TANDEM_MACHINE_INLINE float Sum(Floats x) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }

  TANDEM_MACHINE_INLINE int LoadHalf(const uint8_t* p) {
    uint16_t bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return bits;
  }
  // Lane a of x four times, lane b of x four times.
  template <int a, int b>
  TANDEM_MACHINE_INLINE Floats Spread(Floats x) {
    return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(a, a, a, a, b, b, b, b));
  }
  // f16 from two places, each in the four lanes of its block.
  template <int kStride>
  TANDEM_MACHINE_INLINE Floats LoadScales(const uint8_t* p) {
    const unsigned bits =
        static_cast<unsigned>(LoadHalf(p)) | static_cast<unsigned>(LoadHalf(p + kStride)) << 16;
    const __m128 two = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(bits)));
    return Spread<0, 1>(_mm256_castps128_ps256(two));
  }
  TANDEM_MACHINE_INLINE Floats BroadcastHalf(const uint8_t* p) {
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(LoadHalf(p))));
  }
  // c + a * the upper half of the 16 floats at `from`, whose lower half is zeros.
  TANDEM_MACHINE_INLINE Floats AddUpperProduct(Floats a, const uint8_t* from, Floats c) {
    return MulAdd(a, LoadFloats(from + 32), c);
  }

  // q4_k, q5_k: d * scale and dmin * min of the eight blocks.
  struct MinScales {
    Floats scale, min;
    __attribute__((always_inline)) explicit MinScales(const uint8_t* w) {
      uint32_t a, b, c;
      __builtin_memcpy(&a, w + 4, 4);
      __builtin_memcpy(&b, w + 8, 4);
      __builtin_memcpy(&c, w + 12, 4);
      const uint32_t scale_high = (c & 0x0F0F0F0Fu) | ((a >> 2) & 0x30303030u);
      const uint32_t min_high = ((c >> 4) & 0x0F0F0F0Fu) | ((b >> 2) & 0x30303030u);
      const uint64_t scales = (a & 0x3F3F3F3Fu) | uint64_t{scale_high} << 32;
      const uint64_t mins = (b & 0x3F3F3F3Fu) | uint64_t{min_high} << 32;
      scale = Scaled(scales, BroadcastHalf(w));
      min = Scaled(mins, BroadcastHalf(w + 2));
    }
    TANDEM_MACHINE_INLINE Floats Scaled(uint64_t bytes, Floats factor) {
      const __m128i eight = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
      return Mul(ToFloats(_mm256_cvtepu8_epi32(eight)), factor);
    }
    template <int kQuad, int kSet>
    __attribute__((always_inline)) Floats Of() const {
      return Spread<kQuad + 4 * kSet, kQuad + 4 * kSet + 2>(scale);
    }
    __attribute__((always_inline)) Floats AddCorrection(const uint8_t* from, Floats sum) const {
      return AddUpperProduct(min, from, sum);
    }
  };

  // q6_k: whole-numbered scales of the 16 half blocks, and d. p: at the scales.
  struct SixScales {
    Ints low, high;
    Floats d;
    __attribute__((always_inline)) explicit SixScales(const uint8_t* p)
        : low(_mm256_cvtepi8_epi32(LoadHalfVector(p))),
          high(_mm256_cvtepi8_epi32(_mm_srli_si128(LoadHalfVector(p), 8))),
          d(BroadcastHalf(p + 16)) {}
    template <int kQuad, int kSet, int kHalf>
    __attribute__((always_inline)) Ints Of() const {
      constexpr int s = 4 * kQuad + kHalf;
      return _mm256_castps_si256(Spread<s, s + 2>(_mm256_castsi256_ps(kSet == 0 ? low : high)));
    }
    __attribute__((always_inline)) Floats AddCorrection(const uint8_t* from, Floats sum) const {
      sum = MulAdd(Mul(ToFloats(low), d), LoadFloats(from), sum);
      return MulAdd(Mul(ToFloats(high), d), LoadFloats(from + 32), sum);
    }
  };
};
