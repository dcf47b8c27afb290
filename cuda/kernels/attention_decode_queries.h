// The queries of a decode kernel's block: copied to shared memory as 16-bit numbers, a row per
// column, for ldmatrix.
#pragma once

#include "cuda/device/matrix.h"
#include "cuda/kernels/attention_decode_block.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// 8 elements of a row of q from d on; zeros beyond its end.
__device__ inline Chunk QueryChunk(const DecodeParams& p, int64_t offset, int d) {
  const DeviceTensor& q = p.attention.q;
  const int size = static_cast<int>(q.dims[3]);
  Chunk chunk = {};
  if (p.q_vectors) {
    if (d < size) chunk = LoadChunk(q, offset, {d, d + 4});
    return chunk;
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (d + i < size) chunk.x[i] = LoadNumber(q, offset + (d + i) * q.strides[3]);
  }
  return chunk;
}

// kPermuted: within 16 elements, those of a lane's four int8 keys come where the lane has its two
// pairs. A warp has a column at a time, a lane 8 of its at most 256 elements. Needs a barrier.
template <typename T, bool kPermuted>
__device__ inline void LoadQueries(const DecodeParams& p, const DecodeBlock& block,
                                   const DecodeShared& shared, int first_column) {
  const int d = LaneId() * kChunk, size = static_cast<int>(p.attention.q.dims[3]);
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int c = WarpId(); c < p.layout.columns; c += warps) {
    const DecodeColumn column = DecodeColumnOf(p, block, first_column + c);
    Chunk chunk = {};
    if (column.real) {
      chunk = QueryChunk(p, DecodeRowOffset(p.attention.q, block, column), d);
    }
    float factor = 1.0f;
    if (p.q_scaled) {  // the largest to 2^14 or above
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float x = Abs(chunk.x[i]);
        if (IsFinite(x) && x > largest) largest = x;
      }
      largest = WarpMax(largest);
      int e = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23) - 127 - 14;
      e = e < -60 ? -60 : e;  // times the scale it must stay a normal number
      if (largest > 0.0f) {
        factor = PowerOfTwo(e);
        const float inverse = PowerOfTwo(-e);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) chunk.x[i] *= inverse;
      }
    }
    if (LaneId() == 0) shared.q_factor[c] = factor;
    if (d >= (size + 15) / 16 * 16) continue;
    for (int term = 0; term < p.q_terms; ++term) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = chunk.x[2 * i], high = chunk.x[2 * i + 1];
        words[i] = RoundPair<T>(low, high);
        const FloatPair taken = std::is_same_v<T, F16> ? UnpackF16(words[i]) : UnpackBF16(words[i]);
        // What an infinity leaves is nothing.
        chunk.x[2 * i] = IsFinite(taken.low) ? low - taken.low : 0.0f;
        chunk.x[2 * i + 1] = IsFinite(taken.high) ? high - taken.high : 0.0f;
      }
      char* row = shared.q + (term * p.layout.columns + c) * p.layout.q_stride;
      if constexpr (kPermuted) {
        char* at = row + d / 16 * 32 + d / 8 % 2 * 8;
        StorePacked(at, Packed<8>{{words[0], words[2]}});
        StorePacked(at + 16, Packed<8>{{words[1], words[3]}});
      } else {
        StorePacked(row + d * 2, Packed<16>{{words[0], words[1], words[2], words[3]}});
      }
    }
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
