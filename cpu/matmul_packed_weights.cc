// Quantised weights rearranged for the packed integer product; the layout is in matmul_packed.h.
//
// Algorithm: per panel and 32 elements of K, the quants of 32 rows are decoded to unsigned bytes,
//   and stored four elements (one word) at a time, several words or-ed together where they share
//   bytes. One task per panel; every byte of the panel is written.
#include "cpu/matmul_packed_weights.h"

#include <array>
#include <cstring>

#include "core/dtype.h"
#include "core/status.h"
#include "cpu/matmul_packed.h"

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
    if (weights.dtype == DType::kQ8_0) {
      PackPanel<BlockQ8_0>(weights, format, n0, to);
    } else {
      PackPanel<BlockQ4_0>(weights, format, n0, to);
    }
  });
  auto packed = std::make_unique<Int8Weights>(std::move(buffer));
  packed->dtype = weights.dtype;
  packed->device = weights.device;
  packed->n = n;
  packed->k = k;
  return packed;
}

}  // namespace tandem::cpu
