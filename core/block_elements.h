// One element of a block of GGUF's quantised formats, as f32. Layouts: core/dtype.h.
//
// Exact but for one rounding: d * scale * q and dmin * min have at most 24 significant bits. The
// same on every device: kernels of GPUs call these too.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tandem {

// The 6-bit scale and minimum of sub-block s.
struct PackedScaleMin {
  int scale, min;
};
constexpr PackedScaleMin UnpackScaleMin(const uint8_t (&scales)[12], int s) {
  if (s < 4) return {scales[s] & 63, scales[s + 4] & 63};
  return {(scales[s + 4] & 15) | (scales[s - 4] >> 6 << 4),
          (scales[s + 4] >> 4) | (scales[s] >> 6 << 4)};
}

constexpr float BlockElement(const BlockQ8_0& block, int i) {
  return ToFloat(block.d) * static_cast<float>(block.q[i]);
}

constexpr float BlockElement(const BlockQ4_0& block, int i) {
  const int nibble = i < 16 ? block.q[i] & 15 : block.q[i - 16] >> 4;
  return ToFloat(block.d) * static_cast<float>(nibble - 8);
}

constexpr float BlockElement(const BlockQ4_K& block, int i) {
  const PackedScaleMin s = UnpackScaleMin(block.scales, i / 32);
  const int q = block.q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
  return ToFloat(block.d) * static_cast<float>(s.scale * q) -
         ToFloat(block.dmin) * static_cast<float>(s.min);
}

constexpr float BlockElement(const BlockQ5_K& block, int i) {
  const PackedScaleMin s = UnpackScaleMin(block.scales, i / 32);
  const int low = block.q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
  const int q = low | (block.high[i % 32] >> (i / 32) & 1) << 4;
  return ToFloat(block.d) * static_cast<float>(s.scale * q) -
         ToFloat(block.dmin) * static_cast<float>(s.min);
}

constexpr float BlockElement(const BlockQ6_K& block, int i) {
  const int h = i / 128, r = i % 128;
  const int low = block.low[64 * h + r % 64] >> (r / 64 * 4) & 15;
  const int high = block.high[32 * h + r % 32] >> (r / 32 * 2) & 3;
  const int q = (low | high << 4) - 32;
  const float scale = ToFloat(block.d) * static_cast<float>(block.scales[i / 16]);
  return scale * static_cast<float>(q);
}

constexpr float BlockElement(const BlockTQ2_0& block, int i) {
  const int q = block.q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  return ToFloat(block.d) * static_cast<float>(q - 1);
}

}  // namespace tandem
