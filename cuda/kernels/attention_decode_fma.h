// Decode attention over f32 caches, in f32 throughout: the frame of attention_decode_mma.h with
// fused multiply-adds of the CUDA cores in place of tensor cores, which would round to TF32.
//
// 128 threads. A tile's 64 keys: two threads have a key, and half of the columns each, four at a
// time (a key's 16 bytes against 16 bytes of four queries: 5 loads from shared memory for 16
// fused operations). A warp then has a column and turns its 64 scores into weights. Of the values a
// thread has every 128th element of all columns: one load of V and a broadcast of the weights per 8
// fused operations. With 8 columns of 128 elements shared memory is busy for about half of the time
// that the tile takes to arrive; with 32 the arithmetic takes longer than the memory.
#pragma once

#include "cuda/kernels/attention_decode_block.h"
#include "cuda/kernels/attention_decode_fresh.h"
#include "cuda/kernels/attention_decode_queries.h"
#include "cuda/kernels/attention_decode_ring.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// The queries as f32, zeros beyond their ends. A warp has a column at a time. Needs a barrier.
__device__ inline void LoadFloatQueries(const DecodeParams& p, const DecodeBlock& block,
                                        const DecodeShared& shared, int first_column) {
  const int d = LaneId() * kChunk, warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int c = WarpId(); c < p.layout.columns; c += warps) {
    const DecodeColumn column = DecodeColumnOf(p, block, first_column + c);
    Chunk chunk = {};
    if (column.real) chunk = QueryChunk(p, DecodeRowOffset(p.attention.q, block, column), d);
    if (LaneId() == 0) shared.q_factor[c] = 1.0f;
    auto* row = reinterpret_cast<float*>(shared.q + c * p.layout.q_stride);
    if (d >= p.layout.k_chunks * 4) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) row[d + i] = chunk.x[i];
  }
}

template <int kGroups, typename Scores>
__device__ inline void AttendFloats(const DecodeParams& p, const DecodeBlock& block,
                                    const DecodeShared& shared, DecodeRing<float>& ring) {
  constexpr int kColumns = 8 * kGroups, kTile = static_cast<int>(kDecodeTile);
  constexpr int kThreads = kDecodeKeyWarps * kWarpSize, kWeightStride = kColumns + 4;
  constexpr int kParts = kDecodeMaxHeadDim / kThreads;  // of a row of values, per thread
  const int thread = static_cast<int>(threadIdx.x);
  const int width = static_cast<int>(p.attention.out.dims[3]);
  auto* weights = reinterpret_cast<float*>(shared.q + kColumns * p.layout.q_stride);
  float* rescale = weights + kTile * kWeightStride;
  float acc[kParts][kColumns] = {};
  for (int c = thread; c < kColumns; c += kThreads) {
    shared.max[c] = kNegInf;
    shared.sum[c] = 0.0f;
  }
  for (int tile = block.first_tile; tile < block.end_tile; ++tile) {
    const int base = block.begin + tile * kTile;
    {
      const auto slot = ring.Next();
      const int key = thread % kTile, j = base + key;
      const char* row = slot.data + key * p.layout.k_stride;
      const bool there = j < block.cache_len && (!p.attention.paged || slot.flags[key] != 0);
#pragma unroll 1
      for (int first = thread / kTile * 4; first < kColumns; first += 8) {
        float dots[4] = {};
        const char* queries = shared.q + first * p.layout.q_stride;
#pragma unroll 2
        for (int d = 0; d < p.layout.k_chunks; ++d) {
          const Packed<16> k = LoadPacked<16>(row + d * 16);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const Packed<16> q = LoadPacked<16>(queries + c * p.layout.q_stride + d * 16);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              dots[c] = MultiplyAdd(std::bit_cast<float>(q.words[i]),
                                    std::bit_cast<float>(k.words[i]), dots[c]);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int c = first + i;
          bool visible = there && j >= shared.begin[c] && j < shared.end[c];
          // Without a branch: of a key that is not visible what is read is of key 0.
          const auto& score_row = DecodeRow<Scores>(shared, c);
          const int at = visible ? j : 0;
          visible = visible && Scores::Shows(p.attention, score_row, at);
          const float score = Scores::Score(p.attention, score_row, dots[i], at);
          weights[key * kWeightStride + c] = visible ? score : kNegInf;
        }
      }
    }
    SyncThreads();
    for (int c = WarpId(); c < kColumns; c += kDecodeKeyWarps) {
      const float factor = Scores::Factor(DecodeRow<Scores>(shared, c));
      const float before = shared.max[c];
      float* own[2] = {weights + LaneId() * kWeightStride + c,
                       weights + (LaneId() + kWarpSize) * kWeightStride + c};
      float max = *own[0] > before ? *own[0] : before;  // a NaN is never larger
      max = *own[1] > max ? *own[1] : max;
      for (int step = kWarpSize / 2; step > 0; step /= 2) {
        const float other = ShuffleXor(max, step);
        max = other > max ? other : max;
      }
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float weight = *own[i] == kNegInf ? -0.0f : DecodeWeight(*own[i], max, factor);
        *own[i] = weight;
        sum += weight;
      }
      sum = WarpSum(sum);
      SyncWarp();  // every lane has read shared.max: shuffles order no memory
      if (LaneId() == 0) {
        rescale[c] = DecodeWeight(before, max, factor);
        shared.max[c] = max;
        shared.sum[c] = shared.sum[c] * rescale[c] + sum;
      }
    }
    const auto slot = ring.Next();  // and the weights are there
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int n = thread + part * kThreads;
      if (n >= width) break;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) acc[part][c] *= rescale[c];
#pragma unroll 2
      for (int key = 0; key < kTile; ++key) {
        const float value =
            *reinterpret_cast<const float*>(slot.data + key * p.layout.v_stride + n * 4);
#pragma unroll
        for (int c = 0; c < kColumns; c += 4) {
          const Packed<16> four = LoadPacked<16>(weights + key * kWeightStride + c);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float weight = std::bit_cast<float>(four.words[i]);
            // Whatever the value of a hidden key is.
            const float seen = IsHiddenWeight(weight) ? 0.0f : value;
            acc[part][c + i] = MultiplyAdd(weight, seen, acc[part][c + i]);
          }
        }
      }
    }
  }
  ring.Finish();
  auto* values = reinterpret_cast<float*>(shared.ring);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int n = thread + part * kThreads;
    if (n >= width) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c * p.layout.result_stride + n] = acc[part][c];
  }
  SyncThreads();
}

template <int kGroups, typename Scores>
__global__ void __launch_bounds__(kDecodeKeyWarps* kWarpSize, 2)
    DecodeFmaKernel(const DecodeParams p) {
  SharedCarver carver;
  const DecodeShared shared = CarveDecode(carver, p.layout, 8 * kGroups);
  const DecodeBlock block = DecodeBlockOf(p, blockIdx.x);
  if (p.attention.packed && block.split == 0 && block.s.batch == 0) EmptyRowsOfNoSequence(p, block);
  if (block.idle) return;
  const int columns = block.tokens * static_cast<int>(p.attention.group.value());
  auto* values = reinterpret_cast<float*>(shared.ring);
  for (int pass = block.first_pass; pass * 8 * kGroups < columns; pass += p.pass_blocks) {
    const int first = pass * 8 * kGroups;
    if (pass >= p.pass_blocks) SyncThreads();  // everybody is done with the one before
    if (block.split == p.splits) {
      LoadFloatQueries(p, block, shared, first);
      AttendFreshColumns<Scores>(p, block, shared, first);
    } else {
      DecodeRing<float> ring(p, block, shared);
      LoadFloatQueries(p, block, shared, first);
      SyncThreads();
      FillColumns<Scores>(p, block, shared, first);
      AttendFloats<kGroups, Scores>(p, block, shared, ring);
      KeepResult<Scores>(p, block, shared, values, first, 0, 8 * kGroups);
    }
    FinishPass<Scores>(p, block, shared, pass, first);
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
