// Activations rounded to 8 bits, 32 elements of K at a time, as cpu/quantize_activations-inl.h
// does: scale = max|x| / 127, q = x / scale to nearest even. A NaN or an infinity makes the scale
// NaN and the quants 0: what it is multiplied with becomes NaN.
#pragma once

#include <bit>

#include "cuda/device/elements.h"
#include "cuda/device/integer.h"
#include "cuda/device/math.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul_int8.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Four elements of a block of 32, which eight neighbouring lanes hold.
struct QuantizedFour {
  uint32_t q;
  float scale;
  int32_t first, second;  // sums of the quants of the block's halves
};

// Lane i % 8 has elements 4 i ..; all lanes of the warp take part.
__device__ inline QuantizedFour QuantizeFour(const float (&x)[4]) {
  constexpr int32_t kInfinity = 0x7F800000;
  // As integers, magnitudes of floats keep their order, and what is not finite comes last.
  int32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto bits = static_cast<int32_t>(std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu);
    largest = bits > largest ? bits : largest;
  }
#pragma unroll
  for (int step = 4; step > 0; step /= 2) {
    const int32_t other = ShuffleXor(largest, step);
    largest = other > largest ? other : largest;
  }
  const bool finite = largest < kInfinity, usable = finite && largest != 0;
  float magnitude = usable ? std::bit_cast<float>(largest) : 1.0f;
  QuantizedFour result;
  result.scale = usable   ? Divide(magnitude, 127.0f)
                 : finite ? 0.0f
                          : std::bit_cast<float>(0x7FC00000);
  // 127 / magnitude could overflow.
  const float enlarge = magnitude < 0x1p-100f ? 0x1p64f : 1.0f;
  const float inverse = usable ? Divide(127.0f, Multiply(magnitude, enlarge)) : 0.0f;
  result.q = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float v = RoundToEven(Multiply(Multiply(x[i], enlarge), inverse));
    const int q = usable ? static_cast<int>(v) : 0;
    result.q |= (static_cast<uint32_t>(q) & 255u) << (8 * i);
  }
  int32_t sum = DotProduct4(result.q, 0x01010101u, 0);
  sum += ShuffleXor(sum, 1);
  sum += ShuffleXor(sum, 2);
  const int32_t other = ShuffleXor(sum, 4);
  const bool upper = (LaneId() & 4) != 0;
  result.first = upper ? other : sum;
  result.second = upper ? sum : other;
  return result;
}

// Quantises block `b` of the row of `a` that begins at `row`, or zeros if not `inside`, into slot
// `slot` of `to` if `stored`. All lanes of the warp take part, eight per block.
__device__ inline void QuantizeBlock(const DeviceTensor& a, int64_t row, int64_t b, bool inside,
                                     bool stored, const Int8Activations& to, int64_t slot,
                                     bool scaled_sums) {
  const int part = LaneId() % 8;
  float x[4] = {};
  if (inside) {
    const int64_t at = row + (b * kInt8Block + 4 * part) * a.strides[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = LoadFloatElement(a, at + i * a.strides[2]);
  }
  const QuantizedFour four = QuantizeFour(x);
  if (!stored) return;
  to.quants[slot * (kInt8Block / 4) + part % 4 * 2 + part / 4] = four.q;
  if (part == 0) {
    Int8Scale scale;
    scale.scale = four.scale;
    scale.sums =
        scaled_sums
            ? std::bit_cast<uint32_t>(four.scale * static_cast<float>(four.first + four.second))
            : (static_cast<uint32_t>(four.first) & 0xFFFFu) | static_cast<uint32_t>(four.second)
                                                                  << 16;
    to.scales[slot] = scale;
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
