// Rows by block-quantised weights on the tensor cores, 8 bits each (mma.m16n8k32).
//
// A warp multiplies 16 rows of weights (columns of out; the A operand) by up to 64 rows of a (B),
// 32 elements of K at a time: exact sums, which are scaled and added up in f32. Weights are decoded
// once for all those rows of a. Pieces of 256 elements of the 16 rows are copied in stored form to
// shared memory, by the warp that reads them and 1 or 2 ahead; a row of 4 lanes finds its words in
// as many banks, 8 rows in all 32. Activations were rounded to 8 bits before (int8_quantize), in
// the order of B operands: 256 bytes per 8 rows and 32 elements, read by every warp from the
// caches.
//
// The 8 warps of a block share its rows of weights or, where those are few, K; sums of warps are
// added in order. With M <= 64 weights are read once, else M / 64 times, from the L2 cache mostly.
#include "cuda/device/block_formats.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/math.h"
#include "cuda/device/matmul_epilogue.h"
#include "cuda/device/matrix.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul_int8.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// An integer below 2^22 added to these bits gives those of 1.5 * 2^23 + it, as f32.
constexpr int32_t kMagicBits = 0x4B400000;
constexpr float kMagic = 12582912.0f;

// A warp's walk over the pieces of its 16 rows of weights, as one lane sees it: it copies every
// fourth 16 bytes of rows lane / 4 and lane / 4 + 8, and multiplies words of the same two.
template <typename Block>
struct Cursor {
  static constexpr int kPieceBytes =
      kInt8MmaDepth / Block::kLength * static_cast<int>(sizeof(Block));
  static constexpr int kPitch = kInt8MmaPitch<Block>;

  const uint8_t* at[2];  // the two rows' pieces
  int left[2];           // bytes of the rows, from here

  // Rows from `count` on are not read.
  __device__ Cursor(const Int8MmaParams& p, const uint8_t* rows, int count, int piece) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = LaneId() / 4 + 8 * i;
      at[i] = rows + row * p.row_bytes + int64_t{piece} * kPieceBytes;
      left[i] = row < count ? static_cast<int>(p.used_bytes) - piece * kPieceBytes : 0;
    }
  }
  __device__ void Next(int pieces) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      at[i] += pieces * kPieceBytes;
      left[i] -= pieces * kPieceBytes;
    }
  }
  // How far a piece begins beyond a multiple of 16 bytes.
  __device__ int Lead(int i) const {
    return static_cast<int>(reinterpret_cast<uintptr_t>(at[i]) & 15u);
  }
  // Starts the copy of the pieces, if there are any: each begins in its slot as many bytes on as
  // its address is beyond a multiple of 16.
  __device__ __forceinline__ void Fetch(uint8_t* slot) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int lead = Lead(i), skip = LaneId() % 4 * 16;
      const int used = left[i] < kPieceBytes ? left[i] : kPieceBytes;
      const int bytes = left[i] > 0 ? lead + used - skip : 0;
      const uint8_t* from = at[i] - lead + skip;
      uint8_t* to = slot + (LaneId() / 4 + 8 * i) * kPitch + skip;
#pragma unroll
      for (int k = 0; k < (kPieceBytes + 14 + 63) / 64; ++k) {
        const int valid = bytes - 64 * k;
        if (valid > 0) CopyAsync<16>(to + 64 * k, from + 64 * k, valid < 16 ? valid : 16);
      }
    }
    CopyAsyncCommit();
  }
};

// sums += 16 rows of weights by 8 rows of a, over 32 elements of K.
template <typename Format>
__device__ __forceinline__ void AddBlock(const uint32_t (&w)[4], const SubBlockScales& top,
                                         const SubBlockScales& bottom, const Packed<8>& x,
                                         const Packed<16>& scales, float (&sums)[4]) {
  // Of the two rows of a, columns of the product, that this lane holds.
  const float x_scale[2] = {std::bit_cast<float>(scales.words[0]),
                            std::bit_cast<float>(scales.words[2])};
  const uint32_t x_sums[2] = {scales.words[1], scales.words[3]};
  const uint32_t b[2] = {x.words[0], x.words[1]};
  float products[4];
  if constexpr (Format::kHalves) {
    int32_t first[4], second[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      first[i] = -Format::kOffset * static_cast<int16_t>(x_sums[i % 2] & 0xFFFFu);
      second[i] = -Format::kOffset * static_cast<int16_t>(x_sums[i % 2] >> 16);
    }
    MultiplyAccumulate16x8x32(first, {w[0], w[1], 0u, 0u}, b);
    MultiplyAccumulate16x8x32(second, {0u, 0u, w[2], w[3]}, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const SubBlockScales& row = i < 2 ? top : bottom;
      products[i] = static_cast<float>(first[i] * row.half[0] + second[i] * row.half[1]);
    }
  } else {
    int32_t dots[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dots[i] = kMagicBits;
      if constexpr (Format::kOffset != 0) {
        dots[i] -= Format::kOffset * (static_cast<int16_t>(x_sums[i % 2] & 0xFFFFu) +
                                      static_cast<int16_t>(x_sums[i % 2] >> 16));
      }
    }
    MultiplyAccumulate16x8x32(dots, w, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      products[i] = Subtract(std::bit_cast<float>(dots[i]), kMagic);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const SubBlockScales& row = i < 2 ? top : bottom;
    sums[i] = MultiplyAdd(products[i], Multiply(row.scale, x_scale[i % 2]), sums[i]);
    if constexpr (Format::kMinimum) {
      sums[i] = MultiplyAdd(-row.min, std::bit_cast<float>(x_sums[i % 2]), sums[i]);
    }
  }
}

// Blocks of threads that are to fit a multiprocessor's registers at once. For 64 rows of a these
// two formats need more than the 128 registers that two allow.
template <typename Block, int kGroups>
constexpr int kMinBlocks = kGroups == 1 ? 3
                           : kGroups == 8 && (std::is_same_v<Block, BlockQ6_K> ||
                                              std::is_same_v<Block, BlockTQ2_0>)
                               ? 1
                               : 2;

// kGroups: of 8 rows of a, per block of threads.
template <typename Block, int kGroups>
__global__ void __launch_bounds__(kInt8MmaWarps* kWarpSize, kMinBlocks<Block, kGroups>)
    Int8MmaKernel(const Int8MmaParams p) {
  using Format = BlockFormat<Block>;
  constexpr int kPitch = kInt8MmaPitch<Block>, kStages = kInt8MmaStages<Block>;
  constexpr int kBlockBytes = static_cast<int>(sizeof(Block));
  constexpr bool kSmall = Block::kLength == kInt8Block;
  constexpr int kPeriod = kSmall ? 2 : 1;
  constexpr int kTogether =
      kGroups <= 2 || (kSmall && kGroups == 4) ? 2 : 1;  // blocks, in a straight line
  constexpr int kSlot = kInt8MmaRows * kPitch;
  constexpr int kSubBlocks = kInt8MmaDepth / kInt8Block;
  constexpr int kColumns = 8 * kGroups;
  SharedCarver shared;
  uint8_t* const memory = CarveInt8Mma<Block>(shared, kGroups).weights;
  uint8_t* const ring = memory + WarpId() * (kStages * kSlot);
  const int split = 1 << p.split_shift;
  const int tiles_per_block = kInt8MmaWarps >> p.split_shift;  // 16 rows of weights each
  const int own_tile = WarpId() >> p.split_shift, own_split = WarpId() & (split - 1);
  const int pieces = static_cast<int>((p.blocks + kSubBlocks - 1) / kSubBlocks);
  const int group = LaneId() / 4, quad = LaneId() % 4;
  for (int64_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const Divisor::Result by_m = p.tiles_m.Divide(tile);
    const Divisor::Result by_n = p.tiles_n.Divide(by_m.quotient);
    const int64_t z = by_n.quotient, first_group = by_m.remainder * kGroups;
    const int64_t block_row = by_n.remainder * (tiles_per_block * kInt8MmaRows);
    const int64_t first_row = block_row + own_tile * kInt8MmaRows;
    const uint8_t* rows =
        p.b.template As<const uint8_t>() + z * p.batch_bytes + first_row * p.row_bytes;
    const int count = p.n - first_row >= kInt8MmaRows ? kInt8MmaRows
                      : p.n > first_row               ? static_cast<int>(p.n - first_row)
                                                      : 0;
    Cursor<Block> ahead(p, rows, count, own_split);
    int leads[2] = {ahead.Lead(0), ahead.Lead(1)};
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      ahead.Fetch(ring + stage * kSlot);
      ahead.Next(split);
    }
    float sums[kGroups][4] = {};
    int stage = 0;
    for (int piece = own_split; piece < pieces; piece += split) {
      CopyAsyncWait<kStages - 2>();
      SyncWarp();  // the piece is there, and the one before has been read
      ahead.Fetch(ring + (stage == 0 ? kStages - 1 : stage - 1) * kSlot);
      ahead.Next(split);
      // Where the two rows of this lane begin, and its words of the first block, or of the first
      // two: pairs of blocks of 32 elements are aligned alike.
      const uint8_t* at[2];
      typename Format::Words words[2][kPeriod];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        at[i] = ring + stage * kSlot + (group + 8 * i) * kPitch + leads[i];
        leads[i] = (leads[i] + split * Cursor<Block>::kPieceBytes) & 15;
#pragma unroll
        for (int k = 0; k < kPeriod; ++k) {
          words[i][k] = Format::Open(at[i] + k * kBlockBytes).Skip(4 * quad);
        }
      }
      const int64_t b0 = int64_t{piece} * kSubBlocks;
      const int blocks = p.blocks - b0 < kSubBlocks ? static_cast<int>(p.blocks - b0) : kSubBlocks;
      const int64_t slot0 = ((z * p.x_groups + first_group) * p.blocks + b0) * 8;
      const uint32_t* x = p.x.quants + slot0 * 8 + LaneId() * 2;
      const Int8Scale* x_scales = p.x.scales + slot0 + quad * 2;
#pragma unroll 1
      for (int b = 0; b < blocks; b += kTogether) {
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (b + k >= blocks) break;
          const int sub = kSmall ? 0 : b + k;
          const int parity = kTogether == 2 ? k : b & 1;
          uint32_t w[4];
          SubBlockScales scales[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const typename Format::Words own = parity == 0 ? words[i][0] : words[i][kPeriod - 1];
            Format::Pair(own.Skip(kSmall ? (b + k - parity) * kBlockBytes : 0), sub, 0, w[i],
                         w[i + 2]);
            scales[i] = Format::Scales(kSmall ? at[i] + (b + k) * kBlockBytes : at[i], sub);
          }
          const uint32_t* x_block = x;
          const Int8Scale* x_block_scales = x_scales;
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
            AddBlock<Format>(w, scales[0], scales[1], LoadPacked<8, CacheHint::kReadOnly>(x_block),
                             LoadPacked<16, CacheHint::kReadOnly>(x_block_scales), sums[g]);
            x_block += p.blocks * 64;
            x_block_scales += p.blocks * 8;
          }
          x += 64;
          x_scales += 8;
        }
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    CopyAsyncWait<0>();
    SyncThreads();  // the ring is free: sums[warp][row of a][row of weights]
    auto* all = reinterpret_cast<float*>(memory);
    float* own = all + WarpId() * (kColumns * kInt8MmaRows);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        own[(g * 8 + quad * 2 + i % 2) * kInt8MmaRows + group + i / 2 * 8] = sums[g][i];
      }
    }
    SyncThreads();
    for (int i = static_cast<int>(threadIdx.x); i < tiles_per_block * kColumns * kInt8MmaRows;
         i += kInt8MmaWarps * kWarpSize) {
      // Neighbouring threads: neighbouring columns of out.
      const int columns_shift = 4 + 3 - p.split_shift;  // 16 rows of weights for each of 8 >> shift
      const int column = i >> columns_shift, row = i & ((1 << columns_shift) - 1);
      const int64_t m = first_group * 8 + column, n = block_row + row;
      if (m >= p.m || n >= p.n) continue;
      const float* from = all + ((row / kInt8MmaRows * split) * kColumns + column) * kInt8MmaRows +
                          row % kInt8MmaRows;
      float sum = from[0];
      for (int k = 1; k < split; ++k) sum += from[k * kColumns * kInt8MmaRows];
      FinishProduct(p, z, m, n, sum);
    }
    SyncThreads();  // before the next tile's copies
  }
}

template <typename Block>
KernelFunction OfGroups(int groups) {
  switch (groups) {
    case 1:
      return MakeKernelFunction<&Int8MmaKernel<Block, 1>>("int8_mma");
    case 2:
      return MakeKernelFunction<&Int8MmaKernel<Block, 2>>("int8_mma");
    case 4:
      return MakeKernelFunction<&Int8MmaKernel<Block, 4>>("int8_mma");
    default:
      return MakeKernelFunction<&Int8MmaKernel<Block, 8>>("int8_mma");
  }
}

}  // namespace

KernelFunction Int8MmaFunction(DType weights, int groups) {
  return DispatchBlock(weights, [&]<typename Block>() { return OfGroups<Block>(groups); });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
