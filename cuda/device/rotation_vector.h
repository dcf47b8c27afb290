// Rotary embedding of whole rows as vectors, for the kernels that rotate all heads of a token:
// their cosines and sines are computed once, in f64, into shared memory.
#pragma once

#include "cuda/device/chunk.h"
#include "cuda/device/rotation.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Of one token: [pairs] each, in shared memory.
struct RotationTable {
  float* cosines;
  float* sines;
};

template <typename Carver>
__device__ RotationTable TakeRotationTable(Carver& shared, int64_t pairs) {
  return {shared.template Take<float>(pairs), shared.template Take<float>(pairs)};
}

// All threads of the block; before it, nobody reads the table any more, after it a barrier is due.
__device__ inline void FillRotationTable(const RotationTable& table, const RotationParams& r,
                                         int64_t sequence, int64_t token) {
  for (int64_t i = threadIdx.x; i < r.pairs; i += blockDim.x) {
    const Rotation rotation = RotationOf(r, sequence, token, i);
    table.cosines[i] = rotation.cosine;
    table.sines[i] = rotation.sine;
  }
}

// Two chunks of a row of `columns` elements, `columns / 2` apart: what one thread rotates.
struct ChunkPair {
  Chunk a, b;
};
// Where the chunks of item i (of columns / 16) begin.
__device__ inline ChunkPlace FirstPlace(int i) { return {i * kChunk, i * kChunk + 4}; }
__device__ inline ChunkPlace SecondPlace(int i, int64_t columns) {
  const int64_t at = columns / 2 + i * kChunk;
  return {at, at + 4};
}

template <int kCount>
__device__ inline void LoadTable(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const Packed<16> four = LoadPacked<16>(from + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = std::bit_cast<float>(four.words[j]);
  }
}

// Four neighbouring pairs within a chunk, from pair `pair` on.
__device__ inline void RotateInterleaved(const RotationTable& table, int64_t pair, Chunk& chunk) {
  float cosines[4], sines[4];
  LoadTable(table.cosines + pair, cosines);
  LoadTable(table.sines + pair, sines);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const Pair rotated = Rotate({cosines[j], sines[j]}, {chunk.x[2 * j], chunk.x[2 * j + 1]});
    chunk.x[2 * j] = rotated.a;
    chunk.x[2 * j + 1] = rotated.b;
  }
}

// Rotates the chunks of item i of a row, all of whose columns / 2 pairs are rotated.
__device__ inline void RotateChunks(const RotationTable& table, bool half, int i, int64_t columns,
                                    ChunkPair& x) {
  if (!half) {
    RotateInterleaved(table, i * (kChunk / 2), x.a);
    RotateInterleaved(table, columns / 4 + i * (kChunk / 2), x.b);
    return;
  }
  float cosines[kChunk], sines[kChunk];
  LoadTable(table.cosines + i * kChunk, cosines);
  LoadTable(table.sines + i * kChunk, sines);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    const Pair rotated = Rotate({cosines[j], sines[j]}, {x.a.x[j], x.b.x[j]});
    x.a.x[j] = rotated.a;
    x.b.x[j] = rotated.b;
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
