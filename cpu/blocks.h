// GGUF's block formats, one block at a time: the reference quantisers (those of ggml, whose bytes
// other tools produce). Their inverses are in core/block_elements.h, the formats of 256 elements in
// super_blocks.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/block_elements.h"
#include "core/dtype.h"
#include "core/tensor_view.h"
#include "cpu/super_blocks.h"

namespace tandem::cpu {

// Rounds to an integer in [low, high]; what is not a number in that range (the scale of a block
// with infinite, NaN or subnormal content is useless anyway) becomes `otherwise`.
inline int ToIntegerOr(float x, float low, float high, int otherwise) {
  return x >= low && x <= high ? static_cast<int>(x) : otherwise;
}

inline float BlockScaleInverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

inline void QuantizeBlock(const float* x, BlockQ8_0& block) {
  float largest = 0.0f;
  for (int i = 0; i < BlockQ8_0::kLength; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127.0f;
  const float inverse = BlockScaleInverse(d);
  block.d = ToF16(d);
  for (int i = 0; i < BlockQ8_0::kLength; ++i) {
    block.q[i] = static_cast<int8_t>(ToIntegerOr(std::round(x[i] * inverse), -127.0f, 127.0f, 0));
  }
}

inline void QuantizeBlock(const float* x, BlockQ4_0& block) {
  float largest = 0.0f;
  float extreme = 0.0f;  // the element of largest magnitude, with its sign; the first of equals
  for (int i = 0; i < BlockQ4_0::kLength; ++i) {
    if (largest < std::fabs(x[i])) {
      largest = std::fabs(x[i]);
      extreme = x[i];
    }
  }
  const float d = extreme / -8.0f;
  const float inverse = BlockScaleInverse(d);
  block.d = ToF16(d);
  constexpr int kHalf = BlockQ4_0::kLength / 2;
  // Fused, as in the builds of ggml that made the files in use and in GGUF's own Python package.
  const auto quantize = [&](float value) {
    return std::min(15, ToIntegerOr(std::fma(value, inverse, 8.5f), 0.0f, 17.0f, 8));
  };
  for (int i = 0; i < kHalf; ++i) {
    block.q[i] = static_cast<uint8_t>(quantize(x[i]) | quantize(x[i + kHalf]) << 4);
  }
}

template <typename Block>
void DequantizeBlock(const Block& block, float* x) {
  for (int i = 0; i < Block::kLength; ++i) x[i] = BlockElement(block, i);
}

// First block of row `row` of a block-quantised [R, N] view.
template <typename Block>
Block* BlockRow(const TensorView& view, int64_t row) {
  return view.As<Block>() + row * view.stride(0) / Block::kLength;
}

}  // namespace tandem::cpu
