// One or two rows by block-quantised weights, with dot products of four bytes (dp4a).
//
// A warp does one row of weights (a column of out) at a time, each lane a block of 32 elements of
// K: 1024 per piece. Pieces are copied in their stored form to shared memory, 16 bytes at a time
// and whatever the row's alignment, up to three ahead, also of the warp's next rows; only the warp
// that copies them reads them. While the first are under way the block of threads rounds a to 8
// bits, into shared memory.
//
// Weights are read once. a is read by every block, from the L2 cache mostly: with 4 blocks per
// multiprocessor, 16 KB each for K = 4096. A lane adds its blocks in order, then the lanes are
// added as a tree.
//
// With a gate a warp does the same row of up after each row of the gate, in the same stream of
// pieces, and joins them in registers. Included by the sources that instantiate it.
#pragma once

#include "cuda/device/block_formats.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/matmul_group.h"
#include "cuda/device/quantize_activations.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/device/weight_pieces.h"
#include "cuda/kernels/matmul_int8.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
// From one row of weights of a warp to its next, in bytes: `step` rows on, from the end of a row's
// pieces. With a gate, rows of up lie between those of the gate, `to_up` from them.
struct RowSteps {
  int64_t step, step_bytes, row_bytes, to_up;
  bool gated;

  // `at` has reached the end of a row's pieces, `up` says of which matrix. True if the next row is
  // of other features.
  __device__ bool Next(const uint8_t*& at, bool& up) const {
    if (gated && !up) {
      at += to_up - row_bytes;
      up = true;
      return false;
    }
    at += step_bytes;
    if (gated) at -= to_up;
    up = false;
    return true;
  }
};

// A warp's walk over the pieces of its rows of weights.
template <typename Block>
struct Cursor {
  const uint8_t* at;  // the piece
  int left;           // bytes of its row, from here
  bool up;            // with a gate: of which matrix
  int64_t n;          // the row

  __device__ Cursor(const Int8MatMulParams& p, const uint8_t* weights, int64_t first)
      : at(weights + first * p.row_bytes),
        left(static_cast<int>(p.used_bytes)),
        up(false),
        n(first) {}
  __device__ void Next(const Int8MatMulParams& p, const RowSteps& steps) {
    at += kInt8PieceBytes<Block>;
    left -= kInt8PieceBytes<Block>;
    if (left > 0) return;
    left = static_cast<int>(p.used_bytes);
    if (steps.Next(at, up)) n += steps.step;
  }
  // Starts the copy of the piece, if there is one.
  __device__ void Fetch(const Int8MatMulParams& p, uint8_t* slot) const {
    if (n < p.n) CopyPiece<Block>(at, left, slot);
    CopyAsyncCommit();
  }
};

// sum += the products of a sub-block, whose quants are w[j], scaled.
template <typename Format>
__device__ __forceinline__ float AddSubBlock(const uint32_t (&w)[8], const SubBlockScales& scales,
                                             const uint32_t* x, Int8Scale scale, float sum) {
  const Packed<16> low = LoadPacked<16>(x), high = LoadPacked<16>(x + 4);
  int32_t first = 0, second = 0;
  if constexpr (Format::kOffset != 0) {
    first = -Format::kOffset * static_cast<int16_t>(scale.sums & 0xFFFFu);
    second = -Format::kOffset * static_cast<int16_t>(scale.sums >> 16);
  }
  first = DotProduct4(w[0], low.words[0], first);
  second = DotProduct4(w[1], low.words[1], second);
  first = DotProduct4(w[2], low.words[2], first);
  second = DotProduct4(w[3], low.words[3], second);
  first = DotProduct4(w[4], high.words[0], first);
  second = DotProduct4(w[5], high.words[1], second);
  first = DotProduct4(w[6], high.words[2], first);
  second = DotProduct4(w[7], high.words[3], second);
  if constexpr (Format::kHalves) {
    first = first * scales.half[0] + second * scales.half[1];
  } else {
    first += second;
  }
  sum = MultiplyAdd(static_cast<float>(first), Multiply(scales.scale, scale.scale), sum);
  if constexpr (Format::kMinimum) {
    sum = MultiplyAdd(-scales.min, std::bit_cast<float>(scale.sums), sum);
  }
  return sum;
}

template <typename Block, int kRows, typename Params>
__global__ void __launch_bounds__(kInt8DotWarps* kWarpSize, MatMulWork<Params>::kGroup ? 3 : 4)
    Int8DotKernel(const Params params) {
  using Format = BlockFormat<Block>;
  using Work = MatMulWork<Params>;
  constexpr int kStages = kInt8DotStages, kStride = kInt8PieceStride<Block>;
  const BlockShare share = Work::Share(params);
  const Int8MatMulParams& p = Work::Of(params, share.product);
  SharedCarver shared;
  const Int8DotShared s = CarveInt8Dot<Block>(shared, kRows, p.blocks);
  uint8_t* ring = s.weights + WarpId() * (kStages * kStride);
  const int blocks = static_cast<int>(p.blocks), pieces = (blocks + kWarpSize - 1) / kWarpSize;
  // Neighbouring rows go to different multiprocessors: each has as many to do.
  RowSteps steps;
  steps.step = share.blocks * kInt8DotWarps;
  steps.row_bytes = int64_t{pieces} * kInt8PieceBytes<Block>;
  steps.step_bytes = steps.step * p.row_bytes - steps.row_bytes;
  steps.gated = Work::Gated(params);
  steps.to_up = 0;
  if constexpr (Work::kGroup) {
    steps.to_up = static_cast<int64_t>(reinterpret_cast<uintptr_t>(params.products[1].b.data) -
                                       reinterpret_cast<uintptr_t>(params.products[0].b.data));
  }
  for (int64_t z = blockIdx.y; z < p.batch; z += gridDim.y) {
    const auto* weights = p.b.template As<const uint8_t>() + z * p.batch_bytes;
    Cursor<Block> ahead(p, weights, int64_t{WarpId()} * share.blocks + share.block);
    int64_t n = ahead.n;
    const uint8_t* from = ahead.at;
    if (pieces > 0) {
#pragma unroll
      for (int stage = 0; stage < kStages - 1; ++stage) {
        ahead.Fetch(p, ring + stage * kStride);
        ahead.Next(p, steps);
      }
    }
    SyncThreads();  // the last matrix's activations have been used
    for (int64_t first = int64_t{WarpId()} * 4; first < p.blocks; first += kInt8DotWarps * 4) {
      const int64_t b = first + LaneId() / 8;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        QuantizeBlock(p.a, z * p.a.strides[0] + m * p.a.strides[1], b, b < p.blocks, b < p.blocks,
                      s.x, b * kRows + m, Format::kMinimum);
      }
    }
    SyncThreads();
    int stage = 0;
    bool up = false;
    float gate = 0.0f;
    while (n < p.n) {
      float sums[kRows] = {};
      for (int first = 0; first < blocks; first += kWarpSize) {
        CopyAsyncWait<kStages - 2>();
        SyncWarp();  // the piece is there, and the one before has been read
        ahead.Fetch(p, ring + (stage == 0 ? kStages - 1 : stage - 1) * kStride);
        ahead.Next(p, steps);
        const int b = first + LaneId();
        if (b < blocks) {
          const LaneSubBlock at = SubBlockOfLane<Block>(from, ring + stage * kStride);
          const typename Format::Words words = Format::Open(at.block);
          uint32_t w[8];
#pragma unroll
          for (int j = 0; j < 4; ++j) Format::Pair(words, at.sub, j, w[2 * j], w[2 * j + 1]);
          const SubBlockScales scales = Format::Scales(at.block, at.sub);
#pragma unroll
          for (int m = 0; m < kRows; ++m) {
            const int slot = b * kRows + m;
            sums[m] =
                AddSubBlock<Format>(w, scales, s.x.quants + slot * 8, s.x.scales[slot], sums[m]);
          }
        }
        from += kInt8PieceBytes<Block>;
        stage = stage == kStages - 1 ? 0 : stage + 1;
      }
      float mine = 0.0f;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const float sum = WarpSum(sums[m]);
        if (LaneId() == m) mine = sum;
      }
      if constexpr (Work::kGroup) {
        if (steps.gated) {
          if (up && LaneId() < kRows) FinishGatedProduct(params, LaneId(), n, gate, mine);
          gate = mine;
        } else if (LaneId() < kRows) {
          FinishProduct(p, z, LaneId(), n, mine);
        }
      } else {
        if (LaneId() < kRows) FinishProduct(p, z, LaneId(), n, mine);
      }
      if (steps.Next(from, up)) n += steps.step;
    }
    CopyAsyncWait<0>();
    SyncWarp();  // every lane has read: the next matrix's pieces may come
  }
}

template <typename Block, typename Params>
KernelFunction Int8DotOfRows(int rows) {
  return rows == 1 ? MakeKernelFunction<&Int8DotKernel<Block, 1, Params>>("int8_dot")
                   : MakeKernelFunction<&Int8DotKernel<Block, 2, Params>>("int8_dot");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
