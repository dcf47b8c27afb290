// Pairs of 16-bit floats, packed in a word (the first in the low half), to and from f32. Rounding
// is to nearest even; a NaN stays one, its bits may differ between the targets.
#pragma once

#include <bit>
#include <cstdint>

#include "core/dtype.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

struct FloatPair {
  float low, high;
};

__device__ inline FloatPair UnpackBF16(uint32_t pair) {
  return {std::bit_cast<float>(pair << 16), std::bit_cast<float>(pair & 0xFFFF0000u)};
}

#if TANDEM_CUDA_EMULATED

inline float UnpackHalf(uint16_t bits) { return ToFloat(F16{bits}); }
inline FloatPair UnpackF16(uint32_t pair) {
  return {ToFloat(F16{static_cast<uint16_t>(pair)}),
          ToFloat(F16{static_cast<uint16_t>(pair >> 16)})};
}
inline uint32_t PackF16(float low, float high) {
  return uint32_t{ToF16(low).bits} | uint32_t{ToF16(high).bits} << 16;
}
inline uint32_t PackBF16(float low, float high) {
  return uint32_t{ToBF16(low).bits} | uint32_t{ToBF16(high).bits} << 16;
}
template <int kLow, int kHigh>
uint32_t BytesToF16(uint32_t low, uint32_t high) {
  return PackF16(static_cast<float>(static_cast<int8_t>(low >> (8 * kLow))),
                 static_cast<float>(static_cast<int8_t>(high >> (8 * kHigh))));
}

#else

// One f16, by the instruction.
__device__ inline float UnpackHalf(uint16_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}
__device__ inline FloatPair UnpackF16(uint32_t pair) {
  FloatPair result;
  asm("{\n"
      ".reg .f16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}"
      : "=f"(result.low), "=f"(result.high)
      : "r"(pair));
  return result;
}
__device__ inline uint32_t PackF16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ inline uint32_t PackBF16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// Signed byte kLow of `low` and kHigh of `high` as a pair of f16, exactly: 1024 + (128 + x) has
// 128 + x in its lowest bits.
template <int kLow, int kHigh>
__device__ inline uint32_t BytesToF16(uint32_t low, uint32_t high) {
  constexpr uint32_t kSigns = 0x80808080u;
  constexpr unsigned kSelect = kLow | (4u + kHigh) << 8;  // to bytes 0 and 2, whatever else
  const uint32_t bytes = __byte_perm(low ^ kSigns, high ^ kSigns, kSelect);
  const uint32_t biased = (bytes & 0x00FF00FFu) | 0x64006400u;
  uint32_t pair;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(biased), "r"(0x64806480u));
  return pair;
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
