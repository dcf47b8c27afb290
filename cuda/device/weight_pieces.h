// Pieces of rows of block-quantised weights: 1024 elements, a sub-block of 32 for each lane of a
// warp.
#pragma once

#include "cuda/device/cp_async.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul_int8.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Starts a warp's copy of a piece, `left` bytes at most; the caller commits it. Copies move 16
// aligned bytes: in `slot`, it begins as many bytes on as `from` is beyond a multiple of 16.
template <typename Block>
__device__ __forceinline__ void CopyPiece(const uint8_t* from, int left, uint8_t* slot) {
  constexpr int kBytes = kInt8PieceBytes<Block>;
  constexpr int kCopies = (kBytes + 14 + 16 * kWarpSize - 1) / (16 * kWarpSize);
  const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(from) & 15u);
  const int bytes = lead + (left < kBytes ? left : kBytes) - 16 * LaneId();
  const uint8_t* at = from - lead + 16 * LaneId();
  uint8_t* to = slot + 16 * LaneId();
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int skip = 16 * kWarpSize * i, valid = bytes - skip;
    if (valid > 0) CopyAsync<16>(to + skip, at + skip, valid < 16 ? valid : 16);
  }
}

// Where this lane's sub-block of the piece at `from` is: its block in `slot`, and its number there.
struct LaneSubBlock {
  const uint8_t* block;
  int sub;
};
template <typename Block>
__device__ __forceinline__ LaneSubBlock SubBlockOfLane(const uint8_t* from, const uint8_t* slot) {
  constexpr int kSubBlocks = Block::kLength / kInt8Block;
  const int lead = static_cast<int>(reinterpret_cast<uintptr_t>(from) & 15u);
  return {slot + lead + LaneId() / kSubBlocks * static_cast<int>(sizeof(Block)),
          LaneId() % kSubBlocks};
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
