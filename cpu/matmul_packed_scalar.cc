// The packed integer product in plain C++: for processors without AVX2, and to check the others.
#include "core/dtype.h"
#include "cpu/matmul_packed.h"

namespace tandem::cpu {
namespace {

struct Machine {
  struct Bytes {
    uint8_t at[64];
  };
  struct Ints {
    int32_t at[16];
  };
  struct Floats {
    float at[16];
  };
  struct Quad {
    int8_t at[4];
  };
  static constexpr int kGroups = 1, kRows = StripRows(DotIsa::kScalar);

  template <typename T>
  static T Load(const void* p) {
    T x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static Bytes LoadBytes(const uint8_t* p) { return Load<Bytes>(p); }
  static Bytes Mask(Bytes x, uint8_t mask) {
    for (uint8_t& byte : x.at) byte &= mask;
    return x;
  }
  static Bytes Or(Bytes x, const Bytes& y) {
    for (int i = 0; i < 64; ++i) x.at[i] |= y.at[i];
    return x;
  }
  // Bits that leave a byte are lost, unlike in vectors, where they enter its neighbour: callers
  // mask either way.
  template <int kBits>
  static Bytes ShiftRight(Bytes x) {
    for (uint8_t& byte : x.at) byte = static_cast<uint8_t>(byte >> kBits);
    return x;
  }
  template <int kBits>
  static Bytes ShiftLeft(Bytes x) {
    for (uint8_t& byte : x.at) byte = static_cast<uint8_t>(byte << kBits);
    return x;
  }
  static Quad LoadQuad(const uint8_t* p) { return Load<Quad>(p); }
  static Ints ZeroInts() { return {}; }
  template <int kMax>
  static Ints StartFrom(const uint8_t* correction) {
    Ints sums;
    for (int32_t& x : sums.at) x = Load<int32_t>(correction);
    return sums;
  }
  template <int kMax>
  static void AddDots(const Bytes& even, const Bytes& odd, Quad first, Quad second, Ints& sums) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 4; ++j) {
        sums.at[i] += even.at[i * 4 + j] * first.at[j] + odd.at[i * 4 + j] * second.at[j];
      }
    }
  }
  static Floats ToFloats(const Ints& x) {
    return Make([&](int i) { return static_cast<float>(x.at[i]); });
  }
  static Floats ZeroFloats() { return {}; }
  static Floats LoadFloats(const float* p) { return Load<Floats>(p); }
  static void StoreFloats(const Floats& x, float* p) { __builtin_memcpy(p, &x, sizeof(x)); }
  static Floats LoadHalfFloats(const uint8_t* p) {
    return Make([&](int i) { return ToFloat(Load<F16>(p + 2 * i)); });
  }
  static Floats LoadUnsignedBytes(const uint8_t* p) {
    return Make([&](int i) { return static_cast<float>(p[i]); });
  }
  static Floats LoadSignedBytes(const uint8_t* p) {
    return Make([&](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); });
  }
  static Floats Mul(const Floats& x, const Floats& y) {
    return Make([&](int i) { return x.at[i] * y.at[i]; });
  }
  static Floats MulScalar(const Floats& x, const uint8_t* p) {
    const float y = Load<float>(p);
    return Make([&](int i) { return x.at[i] * y; });
  }
  static Floats MulAdd(const Floats& x, const Floats& y, const Floats& z) {
    return Make([&](int i) { return x.at[i] * y.at[i] + z.at[i]; });
  }
  // z - x * scalar
  static Floats SubtractScaled(const Floats& z, const Floats& x, const uint8_t* p) {
    const float y = Load<float>(p);
    return Make([&](int i) { return z.at[i] - x.at[i] * y; });
  }

  template <typename Fn>
  static Floats Make(Fn fn) {
    Floats x;
    for (int i = 0; i < 16; ++i) x.at[i] = fn(i);
    return x;
  }
};

#include "cpu/matmul_packed_tile-inl.h"

}  // namespace

MultiplyStrip MultiplyStripScalar(DType dtype) { return MultiplyStripFor<Machine>(dtype); }

}  // namespace tandem::cpu
