#include "tests/reference/super_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace tandem::reference {
namespace {

// A block taken apart: its scales, and the quants that were asked for. Sub-blocks have 256 /
// sub_blocks elements.
struct Parts {
  double d = 0.0, dmin = 0.0;
  int sub_blocks = 1;
  std::array<int, 16> scale{};
  std::array<int, 16> min{};
  std::array<int, 256> q{};
  int zero = 0;  // the quant that stands for 0

  double Value(int i) const {
    const int s = i * sub_blocks / 256;
    return d * scale[s] * (q[i] - zero) - dmin * min[s];
  }
};

// The six-bit numbers of the 12 bytes, as GGUF packs them: the scales 0..3 and minima 0..3 fill the
// low six bits of bytes 0..7; of the others the low four bits are in bytes 8..11 (scale below,
// minimum above), and the top two above the six of bytes 0..7.
void UnpackSixBits(const uint8_t* bytes, Parts& parts) {
  for (int s = 0; s < 4; ++s) {
    parts.scale[s] = bytes[s] % 64;
    parts.min[s] = bytes[4 + s] % 64;
    parts.scale[4 + s] = bytes[8 + s] % 16 + bytes[s] / 64 * 16;
    parts.min[4 + s] = bytes[8 + s] / 16 + bytes[4 + s] / 64 * 16;
  }
}

void PackSixBits(const Parts& parts, uint8_t* bytes) {
  for (int s = 0; s < 4; ++s) {
    const int scale = parts.scale[4 + s], min = parts.min[4 + s];
    bytes[s] = static_cast<uint8_t>(parts.scale[s] + scale / 16 * 64);
    bytes[4 + s] = static_cast<uint8_t>(parts.min[s] + min / 16 * 64);
    bytes[8 + s] = static_cast<uint8_t>(scale % 16 + min % 16 * 16);
  }
}

// Fields of `bits` bits: field `index` of each of `lanes` bytes in turn, then the next field; after
// 8 / bits of them, the next `lanes` bytes. Every format's quants are such a sequence.
int Field(const uint8_t* bytes, int bits, int lanes, int i) {
  const int fields = 8 / bits;
  const int byte = i / (lanes * fields) * lanes + i % lanes;
  return bytes[byte] >> (i / lanes % fields * bits) & ((1 << bits) - 1);
}

void AddField(uint8_t* bytes, int bits, int lanes, int i, int value) {
  const int fields = 8 / bits;
  uint8_t& byte = bytes[i / (lanes * fields) * lanes + i % lanes];
  byte = static_cast<uint8_t>(byte | value << (i / lanes % fields * bits));
}

// Everything but the quants of elements other than `i`.
template <typename Block>
Parts TakeApart(const Block& block, int i) {
  Parts parts;
  parts.d = ToFloat(block.d);
  if constexpr (std::is_same_v<Block, BlockQ6_K>) {
    parts.sub_blocks = 16;
    parts.zero = 32;
    for (int s = 0; s < 16; ++s) parts.scale[s] = block.scales[s];
    parts.q[i] = Field(block.low, 4, 64, i) + 16 * Field(block.high, 2, 32, i);
  } else if constexpr (std::is_same_v<Block, BlockTQ2_0>) {
    parts.zero = 1;
    parts.scale[0] = 1;
    parts.q[i] = Field(block.q, 2, 32, i);
  } else {
    parts.sub_blocks = 8;
    parts.dmin = ToFloat(block.dmin);
    UnpackSixBits(block.scales, parts);
    parts.q[i] = Field(block.q, 4, 32, i);
    if constexpr (std::is_same_v<Block, BlockQ5_K>) parts.q[i] += 16 * Field(block.high, 1, 32, i);
  }
  return parts;
}

int Nearest(double x, int low, int high) {
  return static_cast<int>(std::clamp<double>(std::nearbyint(x), low, high));
}

void Encode(const std::vector<double>& values, BlockTQ2_0& block) {
  block = {};
  double largest = 0.0;
  for (double v : values) largest = std::max(largest, std::fabs(v));
  block.d = ToF16(static_cast<float>(largest));
  for (int i = 0; i < 256; ++i) {
    const int q = largest > 0.0 ? Nearest(values[i] / largest, -1, 1) + 1 : 1;
    AddField(block.q, 2, 32, i, q);
  }
}

template <typename Block>
void Encode(const std::vector<double>& values, Block& block) {
  block = {};
  Parts parts;
  constexpr bool kHasMin = requires { block.dmin; };
  constexpr int kSubBlocks = kHasMin ? 8 : 16, kSubBlock = 256 / kSubBlocks;
  constexpr int kLevels = std::is_same_v<Block, BlockQ4_K> ? 15 : 31;
  std::array<double, 16> scale{}, min{};
  double max_scale = 0.0, max_min = 0.0;
  for (int s = 0; s < kSubBlocks; ++s) {
    const auto [low, high] =
        std::minmax_element(values.begin() + s * kSubBlock, values.begin() + (s + 1) * kSubBlock);
    if (kHasMin) {
      min[s] = std::max(0.0, -*low);
      scale[s] = (std::max(0.0, *high) + min[s]) / kLevels;
    } else {
      scale[s] = std::max(-*low, *high) / kLevels;
      if (s % 2 == 1) scale[s] = -scale[s];  // scales have signs: let both occur
    }
    max_scale = std::max(max_scale, std::fabs(scale[s]));
    max_min = std::max(max_min, min[s]);
  }
  constexpr int kScaleLevels = kHasMin ? 63 : 127;
  block.d = ToF16(static_cast<float>(max_scale / kScaleLevels));
  parts.d = ToFloat(block.d);
  if constexpr (kHasMin) {
    block.dmin = ToF16(static_cast<float>(max_min / 63));
    parts.dmin = ToFloat(block.dmin);
  }
  for (int s = 0; s < kSubBlocks; ++s) {
    if (parts.d > 0.0) {
      parts.scale[s] = Nearest(scale[s] / parts.d, kHasMin ? 0 : -kScaleLevels, kScaleLevels);
    }
    if (parts.dmin > 0.0) parts.min[s] = Nearest(min[s] / parts.dmin, 0, 63);
  }
  for (int i = 0; i < 256; ++i) {
    const int s = i / kSubBlock;
    const double step = parts.d * parts.scale[s];
    const double level = step != 0.0 ? (values[i] + parts.dmin * parts.min[s]) / step : 0.0;
    if constexpr (std::is_same_v<Block, BlockQ6_K>) {
      const int q = Nearest(level, -32, 31) + 32;
      AddField(block.low, 4, 64, i, q % 16);
      AddField(block.high, 2, 32, i, q / 16);
    } else {
      const int q = Nearest(level, 0, kLevels);
      AddField(block.q, 4, 32, i, q % 16);
      if constexpr (std::is_same_v<Block, BlockQ5_K>) AddField(block.high, 1, 32, i, q / 16);
    }
  }
  if constexpr (kHasMin) {
    PackSixBits(parts, block.scales);
  } else {
    for (int s = 0; s < kSubBlocks; ++s) block.scales[s] = static_cast<int8_t>(parts.scale[s]);
  }
}

template <typename Fn>
void Dispatch(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kQ4_K:
      return fn(BlockQ4_K());
    case DType::kQ5_K:
      return fn(BlockQ5_K());
    case DType::kQ6_K:
      return fn(BlockQ6_K());
    case DType::kTQ2_0:
      return fn(BlockTQ2_0());
    default:
      return;
  }
}

}  // namespace

double ReadSuperBlock(DType dtype, const void* data, int i) {
  double value = std::numeric_limits<double>::quiet_NaN();
  Dispatch(dtype, [&](auto block) {
    std::memcpy(&block, data, sizeof(block));
    value = TakeApart(block, i).Value(i);
  });
  return value;
}

void WriteSuperBlock(DType dtype, const std::vector<double>& values, void* data) {
  Dispatch(dtype, [&](auto block) {
    Encode(values, block);
    std::memcpy(data, &block, sizeof(block));
  });
}

}  // namespace tandem::reference
