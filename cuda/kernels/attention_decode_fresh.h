// The keys of k_new and v_new, of any float type, in f32: a part of their own beside the splits of
// the cache, for they are few.
#pragma once

#include "cuda/kernels/attention_decode_block.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Columns first_column .. + 8 of a pass that starts with column `pass_column`: the result is in
// shared.max, shared.sum and the ring's memory. 16 keys at a time: a warp has a product of a key
// and a column, then a column, then the block the values. All threads call it.
template <typename Scores>
__device__ inline void AttendFresh(const DecodeParams& p, const DecodeBlock& block,
                                   const DecodeShared& shared, int pass_column, int first_column) {
  const AttentionParams& a = p.attention;
  constexpr int kKeys = kDecodeFreshTile, kColumns = kDecodeFmaColumns;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warps = threads / kWarpSize, width = static_cast<int>(a.out.dims[3]);
  const int stride = p.layout.result_stride;
  auto* values = reinterpret_cast<float*>(shared.ring);
  float* weights = values + kColumns * stride;  // [columns][keys]
  float* rescale = weights + kColumns * kKeys;  // [columns]
  for (int i = thread; i < kColumns * stride; i += threads) values[i] = 0.0f;
  for (int i = thread; i < kColumns; i += threads) {
    shared.max[first_column + i] = kNegInf;
    shared.sum[first_column + i] = 0.0f;
  }
  SyncThreads();
  const int begin = block.begin > block.cache_len ? block.begin : block.cache_len;
  for (int base = begin; base < block.end; base += kKeys) {
    for (int i = WarpId(); i < kColumns * kKeys; i += warps) {
      const int c = first_column + i / kKeys, j = base + i % kKeys;
      float score = kNegInf;
      const auto& row = DecodeRow<Scores>(shared, c);
      if (j >= shared.begin[c] && j < shared.end[c] && Scores::Shows(a, row, j)) {
        const DecodeColumn column = DecodeColumnOf(p, block, pass_column + c);
        const int64_t q = DecodeRowOffset(a.q, block, column);
        const int64_t k = block.s.batch * a.k_new.strides[0] + block.kv_head * a.k_new.strides[1] +
                          (j - block.cache_len) * a.k_new.strides[2];
        float dot = 0.0f;
        for (int d = LaneId(); d < static_cast<int>(a.q.dims[3]); d += kWarpSize) {
          dot = MultiplyAdd(LoadNumber(a.q, q + d * a.q.strides[3]),
                            LoadNumber(a.k_new, k + d * a.k_new.strides[3]), dot);
        }
        // As if it were a product with the copy of q: times the reciprocal of a power of two.
        const uint32_t reciprocal = 0x7F000000u - std::bit_cast<uint32_t>(shared.q_factor[c]);
        score = Scores::Score(a, row, WarpSum(dot) * std::bit_cast<float>(reciprocal), j);
      }
      if (LaneId() == 0) weights[i] = score;
    }
    SyncThreads();
    for (int i = WarpId(); i < kColumns; i += warps) {
      const int c = first_column + i;
      const float factor = Scores::Factor(DecodeRow<Scores>(shared, c));
      const float before = shared.max[c];
      const float score = LaneId() < kKeys ? weights[i * kKeys + LaneId()] : kNegInf;
      float max = score > before ? score : before;  // a NaN is never larger
      for (int step = kWarpSize / 2; step > 0; step /= 2) {
        const float other = ShuffleXor(max, step);
        max = other > max ? other : max;
      }
      const float weight = score == kNegInf ? -0.0f : DecodeWeight(score, max, factor);
      const float sum = WarpSum(weight);
      if (LaneId() < kKeys) weights[i * kKeys + LaneId()] = weight;
      SyncWarp();
      if (LaneId() == 0) {
        rescale[i] = DecodeWeight(before, max, factor);
        shared.max[c] = max;
        shared.sum[c] = shared.sum[c] * rescale[i] + sum;
      }
    }
    SyncThreads();
    const int count = block.end - base < kKeys ? block.end - base : kKeys;
    for (int n = thread; n < width; n += threads) {
      float totals[kColumns] = {};
      for (int key = 0; key < count; ++key) {
        const int64_t v = block.s.batch * a.v_new.strides[0] + block.kv_head * a.v_new.strides[1] +
                          (base + key - block.cache_len) * a.v_new.strides[2];
        const float value = LoadNumber(a.v_new, v + n * a.v_new.strides[3]);
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          const float weight = weights[i * kKeys + key];
          // Whatever the value of a hidden key is.
          if (!IsHiddenWeight(weight)) totals[i] = MultiplyAdd(weight, value, totals[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        values[i * stride + n] = values[i * stride + n] * rescale[i] + totals[i];
      }
    }
    SyncThreads();
  }
}

// The new keys' part of a pass, kept as such. All threads call it, after the queries have been
// loaded as for the cache: maxima of both parts are in the same units.
template <typename Scores>
__device__ inline void AttendFreshColumns(const DecodeParams& p, const DecodeBlock& block,
                                          const DecodeShared& shared, int pass_column) {
  SyncThreads();
  FillColumns<Scores>(p, block, shared, pass_column);
  SyncThreads();
  for (int c = 0; c < p.layout.columns; c += kDecodeFmaColumns) {
    if (!DecodeColumnOf(p, block, pass_column + c).present) break;
    AttendFresh<Scores>(p, block, shared, pass_column, c);
    KeepResult<Scores>(p, block, shared, reinterpret_cast<float*>(shared.ring), pass_column, c,
                       kDecodeFmaColumns);
    SyncThreads();
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
