// Quantised weights rearranged for the packed integer product; the layout is in matmul_packed.h.
//
// Algorithm: per panel and 32 elements of K, the quants of 32 rows are decoded to unsigned bytes,
//   and stored four elements (one word) at a time, several words or-ed together where they share
//   bytes. One task per panel; every byte of the panel is written.
#include "cpu/matmul_packed_weights.h"

#include <array>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "core/status.h"
#include "cpu/blocks.h"
#include "cpu/matmul_packed.h"
#include "cpu/packed_as.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kLaneColumns = 16;

// The unsigned quants of 32 elements of 32 rows; rows that do not exist are zeros.
using Quants = std::array<std::array<uint8_t, kStripBlock>, kPanelColumns>;

uint32_t Word(const Quants& quants, int64_t row, int64_t step) {
  uint32_t word;
  std::memcpy(&word, &quants[static_cast<size_t>(row)][static_cast<size_t>(step * 4)], 4);
  return word;
}

// One vector of 16 rows x 4 elements per group: steps step0, step0 + 1, ... side by side in each
// byte, kBits each. `drop` low bits of each quant are left out.
template <int kBits>
void StoreSteps(const Quants& quants, int step0, int count, int drop, uint8_t* to) {
  constexpr uint32_t kMask = 0x01010101u * ((1u << kBits) - 1);
  for (int64_t row = 0; row < kPanelColumns; ++row) {
    uint32_t word = 0;
    for (int s = 0; s < count; ++s) {
      word |= ((Word(quants, row, step0 + s) >> drop) & kMask) << (s * kBits);
    }
    std::memcpy(to + row * 4, &word, 4);
  }
}

// Byte offset of a 16-bit scale of block `block`, feature `row`.
void StoreF16(F16 value, uint8_t* scales, int64_t block, int64_t row) {
  std::memcpy(scales + (block * kPanelColumns + row) * 2, &value, 2);
}

// Rows [0, rows) of one unit; `blocks` of the file's blocks exist.
void PackUnit(const BlockQ8_0* from, int64_t stride, int64_t rows, int64_t blocks, uint8_t* unit) {
  for (int64_t b = 0; b < blocks; ++b) {
    Quants quants = {};
    for (int64_t row = 0; row < rows; ++row) {
      const BlockQ8_0& block = from[row * stride + b];
      StoreF16(block.d, unit, b, row);
      uint64_t words[4];  // + 128 in each byte
      std::memcpy(words, block.q, sizeof(words));
      for (uint64_t& word : words) word ^= 0x8080808080808080u;
      std::memcpy(quants[static_cast<size_t>(row)].data(), words, sizeof(words));
    }
    for (int step = 0; step < 8; ++step) {
      StoreSteps<8>(quants, step, 1, 0, unit + 128 + b * 1024 + step * 128);
    }
  }
}

void PackUnit(const BlockQ4_0* from, int64_t stride, int64_t rows, int64_t blocks, uint8_t* unit) {
  for (int64_t b = 0; b < blocks; ++b) {
    Quants quants = {};
    for (int64_t row = 0; row < rows; ++row) {
      const BlockQ4_0& block = from[row * stride + b];
      StoreF16(block.d, unit, b, row);
      for (size_t i = 0; i < 16; ++i) {
        quants[static_cast<size_t>(row)][i] = block.q[i] & 15;
        quants[static_cast<size_t>(row)][i + 16] = block.q[i] >> 4;
      }
    }
    for (int pair = 0; pair < 4; ++pair) {
      StoreSteps<4>(quants, 2 * pair, 2, 0, unit + 128 + b * 512 + pair * 128);
    }
  }
}

// Formats of 256 elements have one block per unit.

// The unsigned quants of sub-block s of 32, by format; scales go to their place in the unit.
void Unpack(const BlockQ4_K& block, int s, uint8_t* quants) {
  for (int i = 0; i < 32; ++i) {
    quants[i] = static_cast<uint8_t>((block.q[s / 2 * 32 + i] >> (s % 2 * 4)) & 15);
  }
}
void Unpack(const BlockQ5_K& block, int s, uint8_t* quants) {
  for (int i = 0; i < 32; ++i) {
    const int low = (block.q[s / 2 * 32 + i] >> (s % 2 * 4)) & 15;
    quants[i] = static_cast<uint8_t>(low | ((block.high[i] >> s) & 1) << 4);
  }
}
void Unpack(const BlockQ6_K& block, int s, uint8_t* quants) {
  const int h = s / 4, r = s % 4;  // half of 128, 32 elements within it
  for (int i = 0; i < 32; ++i) {
    const int low = (block.low[64 * h + r % 2 * 32 + i] >> (r / 2 * 4)) & 15;
    quants[i] = static_cast<uint8_t>(low | ((block.high[32 * h + i] >> (2 * r)) & 3) << 4);
  }
}
void Unpack(const BlockTQ2_0& block, int s, uint8_t* quants) {
  const int h = s / 4, r = s % 4;
  for (int i = 0; i < 32; ++i) {
    quants[i] = static_cast<uint8_t>((block.q[32 * h + i] >> (2 * r)) & 3);
  }
}

template <typename Block>
void PackScales(const Block& block, int64_t row, uint8_t* unit) {
  StoreF16(block.d, unit, 0, row);
  if constexpr (std::is_same_v<Block, BlockQ4_K> || std::is_same_v<Block, BlockQ5_K>) {
    StoreF16(block.dmin, unit + 64, 0, row);
    for (int s = 0; s < 8; ++s) {
      const PackedScaleMin pair = UnpackScaleMin(block.scales, s);
      unit[128 + s * kPanelColumns + row] = static_cast<uint8_t>(pair.scale);
      unit[384 + s * kPanelColumns + row] = static_cast<uint8_t>(pair.min);
    }
  } else if constexpr (std::is_same_v<Block, BlockQ6_K>) {
    for (int s = 0; s < 16; ++s) {
      unit[64 + s * kPanelColumns + row] = static_cast<uint8_t>(block.scales[s]);
    }
  }
}

template <typename Block>
void PackUnit(const Block* from, int64_t stride, int64_t rows, int64_t, uint8_t* unit) {
  for (int64_t row = 0; row < rows; ++row) PackScales(from[row * stride], row, unit);
  for (int s = 0; s < 8; ++s) {
    Quants quants = {};
    for (int64_t row = 0; row < rows; ++row) {
      Unpack(from[row * stride], s, quants[static_cast<size_t>(row)].data());
    }
    if constexpr (std::is_same_v<Block, BlockTQ2_0>) {
      for (int half = 0; half < 2; ++half) {
        StoreSteps<2>(quants, 4 * half, 4, 0, unit + 64 + s * 256 + half * 128);
      }
      continue;
    }
    uint8_t* low = unit + (std::is_same_v<Block, BlockQ6_K> ? 576 : 640) + s * 512;
    for (int pair = 0; pair < 4; ++pair) StoreSteps<4>(quants, 2 * pair, 2, 0, low + pair * 128);
    if constexpr (std::is_same_v<Block, BlockQ5_K>) {
      StoreSteps<1>(quants, 0, 8, 4, unit + 4736 + s * 128);
    } else if constexpr (std::is_same_v<Block, BlockQ6_K>) {
      for (int half = 0; half < 2; ++half) {
        StoreSteps<2>(quants, 4 * half, 4, 4, unit + 4672 + s * 256 + half * 128);
      }
    }
  }
}

template <typename Block>
void PackPanel(const TensorView& weights, const PackedFormat& format, int64_t n0, uint8_t* panel) {
  const int64_t rows = std::min(kPanelColumns, weights.dim(0) - n0);
  const int64_t stride = weights.stride(0) / Block::kLength;
  const int64_t blocks = weights.dim(1) / Block::kLength;
  const int64_t unit_blocks = format.depth / Block::kLength;
  const Block* from = weights.As<Block>() + n0 * stride;
  for (int64_t b = 0; b < blocks; b += unit_blocks, panel += format.bytes) {
    std::memset(panel, 0, static_cast<size_t>(format.bytes));
    PackUnit(from + b, stride, rows, std::min(unit_blocks, blocks - b), panel);
  }
}

}  // namespace

PackedFormat PackedFormatOf(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return {64, 2176, Corrections::kOffset, 128};
    case DType::kQ4_0:
      return {64, 1152, Corrections::kOffset, 8};
    case DType::kQ4_K:
      return {256, 4736, Corrections::kMinima, 0};
    case DType::kQ5_K:
      return {256, 5760, Corrections::kMinima, 0};
    case DType::kQ6_K:
      return {256, 6720, Corrections::kHalves, 32};
    case DType::kTQ2_0:
      return {256, 2112, Corrections::kOffset, 1};
    default:
      return {};
  }
}

absl::StatusOr<std::unique_ptr<PackedWeights>> PackInt8(const TensorView& weights,
                                                        Allocator& allocator, ThreadPool& pool) {
  const PackedFormat format = PackedFormatOf(weights.dtype);
  if (format.depth == 0) {
    return Unimplemented("weights: ", std::string(Name(weights.dtype)),
                         " is multiplied as it is stored, without packing");
  }
  const int64_t n = weights.dim(0), k = weights.dim(1);
  const int64_t panels = n / kPanelColumns + (n % kPanelColumns != 0);
  const int64_t units = k / format.depth + (k % format.depth != 0);
  const auto panel_bytes = CheckedMul(units, format.bytes);
  const auto bytes = panel_bytes ? CheckedMul(panels, *panel_bytes) : std::nullopt;
  if (!bytes) return InvalidArgument("weights: size of ", ToString(weights), " overflows 64 bits");
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<Buffer> buffer, allocator.Allocate(*bytes));
  auto* data = static_cast<uint8_t*>(buffer->data());
  pool.ParallelFor(panels, [&](int64_t panel, int) {
    uint8_t* to = data + panel * *panel_bytes;
    const int64_t n0 = panel * kPanelColumns;
    DispatchBlock(weights.dtype,
                  [&]<typename Block>() { PackPanel<Block>(weights, format, n0, to); });
  });
  return PackedAs<Int8Weights>(std::move(buffer), weights);
}

}  // namespace tandem::cpu
