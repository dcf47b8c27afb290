// GGUF's formats of 256 elements (q4_k, q5_k, q6_k, tq2_0), one block at a time: the reference
// quantisers. Layouts: core/dtype.h; inverses: core/block_elements.h; the search for the scales of
// a sub-block: core/sub_block_fit.h.
//
// The quantisers are those of ggml (quantize_row_*_ref), restated: f32 throughout, sums in order of
// the elements, no fused multiply-adds. So restated, their bytes are ggml's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/block_elements.h"
#include "core/dtype.h"
#include "core/sub_block_fit.h"

namespace tandem::cpu {

// ---- q4_k and q5_k: 8 sub-blocks of 32, x = scale * q - min

inline void PackQuants(const uint8_t* q, BlockQ4_K& block) {
  for (int i = 0; i < BlockQ4_K::kLength / 2; ++i) {
    const uint8_t* pair = q + i / kSubBlock * 2 * kSubBlock + i % kSubBlock;
    block.q[i] = static_cast<uint8_t>(pair[0] | pair[kSubBlock] << 4);
  }
}

inline void PackQuants(const uint8_t* q, BlockQ5_K& block) {
  for (int i = 0; i < BlockQ5_K::kLength / 2; ++i) {
    const uint8_t* pair = q + i / kSubBlock * 2 * kSubBlock + i % kSubBlock;
    block.q[i] = static_cast<uint8_t>((pair[0] & 15) | (pair[kSubBlock] & 15) << 4);
  }
  for (int i = 0; i < kSubBlock; ++i) {
    int bits = 0;
    for (int s = 0; s < kSubBlocks; ++s) bits |= q[s * kSubBlock + i] >> 4 << s;
    block.high[i] = static_cast<uint8_t>(bits);
  }
}

// Quantises the fitted scales and minima, and gives each sub-block's d * scale and dmin * min.
template <typename Block>
void PackScaleMins(const ScaleMinFit (&fits)[kSubBlocks], Block& block, float (&scale)[kSubBlocks],
                   float (&min)[kSubBlocks]) {
  float max_scale = 0.0f, max_min = 0.0f;
  for (const ScaleMinFit& fit : fits) {
    if (fit.scale > max_scale) max_scale = fit.scale;
    if (fit.min > max_min) max_min = fit.min;
  }
  const float inverse_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f;
  const float inverse_min = max_min > 0.0f ? 63.0f / max_min : 0.0f;
  block.d = ToF16(max_scale / 63.0f);
  block.dmin = ToF16(max_min / 63.0f);
  // Negative scales (a fit may have one) wrap around to something above 63.
  const auto six_bits = [](float x) { return std::min<int>(63, NearestInteger(x) & 255); };
  int packed_scale[kSubBlocks], packed_min[kSubBlocks];
  for (int s = 0; s < kSubBlocks; ++s) {
    packed_scale[s] = six_bits(inverse_scale * fits[s].scale);
    packed_min[s] = six_bits(inverse_min * fits[s].min);
  }
  for (int s = 0; s < 4; ++s) {
    block.scales[s] = static_cast<uint8_t>(packed_scale[s] | packed_scale[s + 4] >> 4 << 6);
    block.scales[s + 4] = static_cast<uint8_t>(packed_min[s] | packed_min[s + 4] >> 4 << 6);
    block.scales[s + 8] =
        static_cast<uint8_t>((packed_scale[s + 4] & 15) | (packed_min[s + 4] & 15) << 4);
  }
  for (int s = 0; s < kSubBlocks; ++s) {
    scale[s] = ToFloat(block.d) * static_cast<float>(packed_scale[s]);
    min[s] = ToFloat(block.dmin) * static_cast<float>(packed_min[s]);
  }
}

template <typename Block>
void QuantizeScaleMinBlock(const float* x, Block& block) {
  constexpr int kMax = ScaleMinTraits<Block>::kMaxQuant;
  ScaleMinFit fits[kSubBlocks];
  for (int s = 0; s < kSubBlocks; ++s) fits[s] = FitScaleMin<Block>(x + s * kSubBlock);
  float scale[kSubBlocks], min[kSubBlocks];
  PackScaleMins(fits, block, scale, min);
  uint8_t q[Block::kLength];
  for (int i = 0; i < Block::kLength; ++i) {
    const int s = i / kSubBlock;
    // A scale of zero leaves the quants of the fit, which then mean nothing.
    const float level =
        scale[s] != 0.0f ? (x[i] + min[s]) / scale[s] : fits[s].inverse * (x[i] - fits[s].low);
    q[i] = static_cast<uint8_t>(std::clamp(NearestInteger(level), 0, kMax));
  }
  PackQuants(q, block);
}

inline void QuantizeBlock(const float* x, BlockQ4_K& block) { QuantizeScaleMinBlock(x, block); }
inline void QuantizeBlock(const float* x, BlockQ5_K& block) { QuantizeScaleMinBlock(x, block); }

// ---- q6_k: 16 sub-blocks of 16, x = scale * (q - 32)

inline void PackQuants(const uint8_t* q, BlockQ6_K& block) {
  for (int h = 0; h < 2; ++h) {
    for (int i = 0; i < 64; ++i) {
      const uint8_t* pair = q + 128 * h + i;
      block.low[64 * h + i] = static_cast<uint8_t>((pair[0] & 15) | (pair[64] & 15) << 4);
    }
    for (int i = 0; i < 32; ++i) {
      const uint8_t* four = q + 128 * h + i;
      block.high[32 * h + i] = static_cast<uint8_t>(four[0] >> 4 | four[32] >> 4 << 2 |
                                                    four[64] >> 4 << 4 | four[96] >> 4 << 6);
    }
  }
}

// Quantises the fitted scales and gives each sub-block's d * scale. False: the block is all zero
// bytes, and complete.
inline bool PackScales(const ScaleFit (&fits)[kQ6SubBlocks], BlockQ6_K& block,
                       float (&scale)[kQ6SubBlocks]) {
  float largest = 0.0f, extreme = 0.0f;
  for (const ScaleFit& fit : fits) {
    if (std::fabs(fit.scale) > largest) {
      largest = std::fabs(fit.scale);
      extreme = fit.scale;
    }
  }
  if (largest < kZeroBelow) {
    block = {};
    return false;
  }
  const float inverse = -128.0f / extreme;
  block.d = ToF16(1.0f / inverse);
  for (int s = 0; s < kQ6SubBlocks; ++s) {
    block.scales[s] = static_cast<int8_t>(std::min(127, NearestInteger(inverse * fits[s].scale)));
    scale[s] = ToFloat(block.d) * static_cast<float>(block.scales[s]);
  }
  return true;
}

inline void QuantizeBlock(const float* x, BlockQ6_K& block) {
  ScaleFit fits[kQ6SubBlocks];
  for (int s = 0; s < kQ6SubBlocks; ++s) fits[s] = FitScale(x + s * kQ6SubBlock);
  float scale[kQ6SubBlocks];
  if (!PackScales(fits, block, scale)) return;
  uint8_t q[BlockQ6_K::kLength];
  for (int i = 0; i < BlockQ6_K::kLength; ++i) {
    const int s = i / kQ6SubBlock;
    if (fits[s].inverse == 0.0f && scale[s] == 0.0f) {
      q[i] = 0;  // a sub-block of zeros; with a scale of zero its quants mean nothing
      continue;
    }
    const float level = scale[s] != 0.0f ? x[i] / scale[s] : fits[s].inverse * x[i];
    q[i] = static_cast<uint8_t>(std::clamp(NearestInteger(level), -32, 31) + 32);
  }
  PackQuants(q, block);
}

// ---- tq2_0

inline void QuantizeBlock(const float* x, BlockTQ2_0& block) {
  float largest = 0.0f;
  for (int i = 0; i < BlockTQ2_0::kLength; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float inverse = largest != 0.0f ? 1.0f / largest : 0.0f;
  block.d = ToF16(largest);
  for (int i = 0; i < BlockTQ2_0::kLength / 4; ++i) {
    int bits = 0;
    for (int part = 0; part < 4; ++part) {
      const float v = x[i / 32 * 128 + part * 32 + i % 32] * inverse;
      // Rounded half away from zero; NaN counts as 0.
      const int q = v >= 0.5f ? 2 : (v <= -0.5f ? 0 : 1);
      bits |= q << (2 * part);
    }
    block.q[i] = static_cast<uint8_t>(bits);
  }
}

}  // namespace tandem::cpu
