// Integer dot products of stored weights in plain C++, for any processor: the vectors of
// matmul_gemv_int8-inl.h as arrays.
#include <algorithm>

#include "core/dtype.h"
#include "cpu/matmul_gemv_int8.h"

namespace tandem::cpu {
namespace {

#define TANDEM_MACHINE_INLINE static inline

struct Machine {
  static constexpr int kBlocks = 4;
  struct Bytes {
    uint8_t v[64];
  };
  struct Ints {
    int32_t v[16];
  };
  struct Floats {
    float v[16];
  };

  template <class To>
  TANDEM_MACHINE_INLINE To Load(const uint8_t* p) {
    To x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  TANDEM_MACHINE_INLINE Bytes LoadBytes(const uint8_t* p) { return Load<Bytes>(p); }
  TANDEM_MACHINE_INLINE Ints LoadInts(const uint8_t* p) { return Load<Ints>(p); }
  TANDEM_MACHINE_INLINE Floats LoadFloats(const uint8_t* p) { return Load<Floats>(p); }
  TANDEM_MACHINE_INLINE Ints ZeroInts() { return {}; }
  TANDEM_MACHINE_INLINE Floats ZeroFloats() { return {}; }
  // 16 bytes from each of four places, kStride apart.
  template <int kStride>
  TANDEM_MACHINE_INLINE Bytes LoadPieces(const uint8_t* p) {
    Bytes x;
    for (int i = 0; i < 4; ++i) __builtin_memcpy(x.v + 16 * i, p + kStride * i, 16);
    return x;
  }
  // 32 bytes from each of four places: their first and their second halves.
  template <int kStride>
  TANDEM_MACHINE_INLINE void LoadHalves(const uint8_t* p, Bytes& first, Bytes& second) {
    first = LoadPieces<kStride>(p);
    second = LoadPieces<kStride>(p + 16);
  }
  // Of 64 bytes, pieces 0 0 2 2 and pieces 1 1 3 3.
  template <int kSet>
  TANDEM_MACHINE_INLINE void LoadPairs(const uint8_t* p, Bytes& first, Bytes& second) {
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(first.v + 16 * i, p + i / 2 * 32, 16);
      __builtin_memcpy(second.v + 16 * i, p + i / 2 * 32 + 16, 16);
    }
  }
  TANDEM_MACHINE_INLINE Bytes Repeat(const uint8_t* p) { return LoadPieces<0>(p); }
  TANDEM_MACHINE_INLINE Bytes Mask(Bytes x, int mask) {
    for (uint8_t& byte : x.v) byte = static_cast<uint8_t>(byte & mask);
    return x;
  }
  // x | (y & mask)
  TANDEM_MACHINE_INLINE Bytes OrMasked(Bytes x, const Bytes& y, int mask) {
    for (int i = 0; i < 64; ++i) x.v[i] = static_cast<uint8_t>(x.v[i] | (y.v[i] & mask));
    return x;
  }
  template <int kBits>
  TANDEM_MACHINE_INLINE Bytes ShiftRight(Bytes x) {
    return ShiftPieces<kBits, kBits, kBits, kBits>(x);
  }
  // Each piece by a count of its own; negative: to the left.
  template <int k0, int k1, int k2, int k3>
  TANDEM_MACHINE_INLINE Bytes ShiftPieces(Bytes x) {
    constexpr int kCounts[4] = {k0, k1, k2, k3};
    for (int i = 0; i < 64; ++i) {
      const int count = kCounts[i / 16];
      x.v[i] = static_cast<uint8_t>(count >= 0 ? x.v[i] >> count : x.v[i] << -count);
    }
    return x;
  }
  TANDEM_MACHINE_INLINE Ints Dot(Ints sum, const Bytes& u, const Bytes& s) {
    for (int i = 0; i < 64; ++i) sum.v[i / 4] += u.v[i] * static_cast<int8_t>(s.v[i]);
    return sum;
  }
  TANDEM_MACHINE_INLINE Ints DotSigned(const Bytes& first, const Bytes& second,
                                       const uint8_t* x_first, const uint8_t* x_second,
                                       const uint8_t*) {
    Ints sum = {};
    for (int i = 0; i < 64; ++i) {
      sum.v[i / 4] += static_cast<int8_t>(first.v[i]) * static_cast<int8_t>(x_first[i]) +
                      static_cast<int8_t>(second.v[i]) * static_cast<int8_t>(x_second[i]);
    }
    return sum;
  }
  TANDEM_MACHINE_INLINE Ints MulInts(Ints a, const Ints& b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
  }
  TANDEM_MACHINE_INLINE Ints AddInts(Ints a, const Ints& b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
  }
  TANDEM_MACHINE_INLINE Floats ToFloats(const Ints& x) {
    Floats to;
    for (int i = 0; i < 16; ++i) to.v[i] = static_cast<float>(x.v[i]);
    return to;
  }
  TANDEM_MACHINE_INLINE Floats Mul(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
  }
  TANDEM_MACHINE_INLINE Floats MulAdd(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < 16; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  TANDEM_MACHINE_INLINE float Sum(const Floats& x) {
    float sum = 0.0f;
    for (const float lane : x.v) sum += lane;
    return sum;
  }
  TANDEM_MACHINE_INLINE float LoadHalf(const uint8_t* p) {
    F16 half;
    __builtin_memcpy(&half, p, sizeof(half));
    return ToFloat(half);
  }
  // f16 from four places, each in the four lanes of its block.
  template <int kStride>
  TANDEM_MACHINE_INLINE Floats LoadScales(const uint8_t* p) {
    Floats to;
    for (int i = 0; i < 4; ++i) std::fill_n(to.v + 4 * i, 4, LoadHalf(p + kStride * i));
    return to;
  }
  TANDEM_MACHINE_INLINE Floats BroadcastHalf(const uint8_t* p) {
    Floats to;
    std::fill_n(to.v, 16, LoadHalf(p));
    return to;
  }
  TANDEM_MACHINE_INLINE Floats AddUpperProduct(const Floats& a, const uint8_t* from,
                                               const Floats& c) {
    return MulAdd(a, LoadFloats(from), c);
  }

  // q4_k, q5_k: d * scale of the eight blocks, dmin * min of the eight blocks.
  struct MinScales {
    Floats all;
    explicit MinScales(const uint8_t* w) {
      const float d = LoadHalf(w), dmin = LoadHalf(w + 2);
      const uint8_t* packed = w + 4;
      for (int s = 0; s < 8; ++s) {
        const int scale = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | packed[s - 4] >> 6 << 4;
        const int min = s < 4 ? packed[s + 4] & 63 : packed[s + 4] >> 4 | packed[s] >> 6 << 4;
        all.v[s] = d * static_cast<float>(scale);
        all.v[8 + s] = dmin * static_cast<float>(min);
      }
    }
    template <int kQuad, int kSet>
    Floats Of() const {
      Floats to;
      for (int i = 0; i < 4; ++i) std::fill_n(to.v + 4 * i, 4, all.v[kQuad + 2 * i]);
      return to;
    }
    Floats AddCorrection(const uint8_t* from, const Floats& sum) const {
      return MulAdd(all, LoadFloats(from), sum);
    }
  };

  // q6_k: whole-numbered scales of the 16 half blocks, and d. p: at the scales.
  struct SixScales {
    Ints all;
    Floats d;
    explicit SixScales(const uint8_t* p) : d(BroadcastHalf(p + 16)) {
      for (int i = 0; i < 16; ++i) all.v[i] = static_cast<int8_t>(p[i]);
    }
    template <int kQuad, int kSet, int kHalf>
    Ints Of() const {
      Ints to;
      for (int i = 0; i < 4; ++i) {
        std::fill_n(to.v + 4 * i, 4, all.v[4 * kQuad + kHalf + i % 2 * 2 + i / 2 * 8]);
      }
      return to;
    }
    Floats AddCorrection(const uint8_t* from, const Floats& sum) const {
      return MulAdd(Mul(ToFloats(all), d), LoadFloats(from), sum);
    }
  };
};

#include "cpu/matmul_gemv_int8-inl.h"

}  // namespace

Int8Strip Int8StripScalar(DType dtype, int64_t rows) { return StripOf<Machine>(dtype, rows); }

}  // namespace tandem::cpu
