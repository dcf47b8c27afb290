// Products of block-quantised weights with activations rounded to 8 bits (docs/numerics.md): the
// sums of the 32 products of a block are exact integers.
#pragma once

#include <cstdint>

#include "cuda/kernel_function.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/matmul.h"
#include "cuda/kernels/matmul_group.h"
#include "cuda/kernels/shared_bytes.h"

namespace tandem::cuda {

inline constexpr int kInt8Block = 32;  // elements of K that share a scale of the activations

// Of a block of activations. `sums`: those of the quants of its two halves, as int16, the first in
// the low half; or, for formats with minima, scale * (their sum) as f32.
struct Int8Scale {
  float scale;
  uint32_t sums;
};

// Rows go by groups of C (1, 2 or 8). Slot ((z * groups + row / C) * blocks + block) * C + row % C
// holds the 32 quants of a block, in the order in which the lanes of a quad take them: elements
// 4 j .. and 16 + 4 j .. for j = 0..3. With C = 8 the slots of a block are one B operand of
// mma.m16n8k32, a lane's eight bytes at 8 * lane.
struct Int8Activations {
  uint32_t* quants;   // 8 per slot
  Int8Scale* scales;  // one per slot
};

struct Int8QuantizeParams {
  DeviceTensor a;  // rank 3, [Z, M, K]; Z = 1 if it is broadcast
  Int8Activations to;
  int64_t batch, m, padded_m, blocks;  // rows m .. padded_m become zeros
  int columns;                         // C
  bool scaled_sums;
};
inline constexpr int kInt8QuantizeThreads = 256;  // 32 blocks of activations
TANDEM_KERNEL_FUNCTION(Int8QuantizeFunction)

struct Int8MatMulParams : MatMulParams {
  int64_t blocks;       // K / 32
  int64_t row_bytes;    // from one row of weights to the next,
  int64_t batch_bytes;  // and from one matrix; both may be 0
  int64_t used_bytes;   // of a row
};

// --- int8_dot: 1 or 2 rows

inline constexpr int kInt8DotWarps = 8;
inline constexpr int kInt8DotStages = 4;
inline constexpr int kInt8DotMaxRows = 2;

// Weights are staged in pieces of 32 lanes' blocks: 1024 elements of a row. They begin on any even
// byte of the 16 that a copy moves, and a word is read beyond them.
template <typename Block>
inline constexpr int kInt8PieceBytes = 1024 / Block::kLength* static_cast<int>(sizeof(Block));
template <typename Block>
inline constexpr int kInt8PieceStride = (kInt8PieceBytes<Block> + 14 + 2 + 15) / 16 * 16;

struct Int8DotShared {
  uint8_t* weights;  // [warps, stages, piece]
  Int8Activations x;
};
template <typename Block, typename Carver>
TANDEM_HOST_DEVICE Int8DotShared CarveInt8Dot(Carver& shared, int rows, int64_t blocks) {
  Int8DotShared s;
  s.weights =
      shared.template Take<uint8_t>(kInt8DotWarps * kInt8DotStages * kInt8PieceStride<Block>);
  s.x.quants = shared.template Take<uint32_t>(rows * blocks * 8);
  s.x.scales = shared.template Take<Int8Scale>(rows * blocks);
  return s;
}
static_assert(kInt8PieceStride<BlockQ8_0> == 1104 && kInt8PieceStride<BlockQ6_K> == 864);
// rows: 1 or 2
TANDEM_KERNEL_FUNCTION(Int8DotFunction, DType weights, int rows)
// GroupParams<Int8MatMulParams>; every product with weights of that format. With a gate, rows of
// both matrices as far apart.
TANDEM_KERNEL_FUNCTION(GroupedInt8DotFunction, DType weights, int rows)

// --- int8_mma: any number of rows

inline constexpr int kInt8MmaWarps = 8;
inline constexpr int kInt8MmaRows = 16;    // of weights, per warp
inline constexpr int kInt8MmaDepth = 256;  // elements of K that are staged at a time

struct Int8MmaParams : Int8MatMulParams {
  Int8Activations x;
  int64_t x_groups;  // of 8 rows, from one matrix of a to the next; 0 if it is broadcast
  int split_shift;   // 2^split_shift warps share K: 1, 2, 4 or 8
  // Tiles of one block of threads.
  Divisor tiles_m, tiles_n;
  int64_t tiles;
};

// As above, and an odd multiple of 16 bytes, so that 8 rows lie in different banks.
template <typename Block>
inline constexpr int kInt8MmaPitch =
    (kInt8MmaDepth / Block::kLength * static_cast<int>(sizeof(Block)) + 14 + 2 + 15) / 32 * 32 + 16;
template <typename Block>
inline constexpr int kInt8MmaStages = kInt8MmaPitch<Block> > 240 ? 2 : 3;

struct Int8MmaShared {
  uint8_t* weights;  // [warps, stages, 16, pitch]; afterwards the sums of each warp
};
template <typename Block, typename Carver>
TANDEM_HOST_DEVICE Int8MmaShared CarveInt8Mma(Carver& shared, int groups) {
  const int staged = kInt8MmaWarps * kInt8MmaStages<Block> * kInt8MmaRows * kInt8MmaPitch<Block>;
  const int sums = kInt8MmaWarps * kInt8MmaRows * groups * 8 * 4;
  return {shared.template Take<uint8_t>(staged > sums ? staged : sums)};
}
static_assert(kInt8MmaPitch<BlockQ8_0> == 304 && kInt8MmaPitch<BlockQ6_K> == 240);
// groups: of 8 rows of a, per block of threads: 1, 2, 4 or 8
TANDEM_KERNEL_FUNCTION(Int8MmaFunction, DType weights, int groups)

// --- expanded: weights as f32 or bf16, for a library

struct ExpandParams {
  const uint8_t* weights;
  int64_t row_bytes, used_bytes;
  int64_t rows, blocks;  // of 32 elements
  DeviceTensor out;      // rank 2, f32 or bf16
};
inline constexpr int kExpandWarps = 8;
template <typename Block, typename Carver>
TANDEM_HOST_DEVICE uint8_t* CarveExpand(Carver& shared) {
  return shared.template Take<uint8_t>(kExpandWarps * kInt8PieceStride<Block>);
}
TANDEM_KERNEL_FUNCTION(ExpandFunction, DType weights)

}  // namespace tandem::cuda
