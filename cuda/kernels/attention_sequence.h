// Where the queries and keys of an attention call lie, and which keys are visible: what all
// attention kernels share. Values of lists are brought into their range (DeviceList), so nothing
// here leads outside a tensor.
#pragma once

#include "core/ops/online_softmax.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/target.h"
#include "cuda/kernels/attention_params.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// One sequence of a batch, rule.kv_len - new_len of whose keys are in the cache; see
// tandem::AttentionSequence.
struct Sequence {
  int64_t batch;
  int64_t q_batch;  // where its queries lie in q, out and lse
  int64_t q_begin;  // row of the first of them
  MaskRule rule;
};

__device__ inline Sequence SequenceOf(const AttentionParams& p, int64_t b) {
  Sequence s;
  s.batch = b;
  s.q_batch = p.packed ? 0 : b;
  s.q_begin = 0;
  s.rule = p.rule;
  const int64_t rows = p.q.dims[2];
  if (p.packed) {
    s.q_begin = p.q_offsets.At(b, 0, rows, 0);
    const int64_t end = p.q_offsets.At(b + 1, 0, rows, 0);
    s.rule.q_len = end > s.q_begin ? end - s.q_begin : 0;
  }
  s.rule.q_len = p.q_lens.At(b, 0, rows, s.rule.q_len);
  s.rule.SetLength(p.kv_lens.At(b, 0, p.cache_rows, p.cache_rows), p.cache_len, p.new_len,
                   p.new_after);
  s.rule.kv_begin = p.kv_starts.At(b, 0, kMaxSequenceLength, 0);
  return s;
}

// The sequence that row `row` of batch entry `q_batch` of q belongs to; one without queries if the
// offsets of a packed batch do not cover the row.
__device__ inline Sequence SequenceOfRow(const AttentionParams& p, int64_t q_batch, int64_t row) {
  int64_t batch = q_batch;
  if (p.packed) {
    const int64_t rows = p.q.dims[2];
    batch = 0;  // sequences that end before the row: no branch that depends on it
    for (int64_t b = 1; b <= p.sequences; ++b) batch += p.q_offsets.At(b, 0, rows, 0) <= row;
  }
  if (batch >= p.sequences) {
    Sequence none = {0, 0, 0, p.rule};
    none.rule.q_len = 0;
    return none;
  }
  Sequence s = SequenceOf(p, batch);
  if (row < s.q_begin) s.rule.q_len = 0;
  return s;
}

// Offset in k, v or a scale of the cache's key `j`; -1 where the page table leads outside the pool.
__device__ inline int64_t CacheOffset(const AttentionParams& p, const DeviceTensor& t,
                                      int64_t batch, int64_t kv_head, int64_t j) {
  int64_t plane = batch, index = j;
  if (p.paged) {
    const Divisor::Result page = p.page_size.Divide(j);
    plane = p.page_table.At(batch, page.quotient);
    index = page.remainder;
    if (plane < 0 || plane >= t.dims[0]) return -1;
  }
  return plane * t.strides[0] + kv_head * t.strides[1] + index * t.strides[2];
}

// Offset in a bias or mask, whose strides are 0 where it is broadcast. `row` counts the rows of q:
// in a packed batch those of all sequences.
__device__ inline int64_t BroadcastOffset(const DeviceTensor& t, int64_t batch, int64_t head,
                                          int64_t row, int64_t j) {
  return batch * t.strides[0] + head * t.strides[1] + row * t.strides[2] + j * t.strides[3];
}

// Does the mask, if there is one, show key j?
__device__ inline bool MaskShows(const AttentionParams& p, int64_t batch, int64_t head, int64_t row,
                                 int64_t j) {
  if (!p.mask.present()) return true;
  if (p.mask.dtype == DType::kBool) {
    return p.mask.As<const uint8_t>()[BroadcastOffset(p.mask, batch, head, row, j)] != 0;
  }
  const uint32_t word =
      p.mask.As<const uint32_t>()[BroadcastOffset(p.mask, batch, head, row, j / 32)];
  return (word >> (j % 32) & 1u) != 0;
}

// The bias of key j, 0 without one; -inf hides the key, whatever its score.
__device__ inline float BiasOf(const AttentionParams& p, int64_t batch, int64_t head, int64_t row,
                               int64_t j) {
  return p.bias.present() ? LoadNumber(p.bias, BroadcastOffset(p.bias, batch, head, row, j)) : 0.0f;
}

// The score of a key at distance `position - j`, without its bias, from the product of q and k.
// `slope`: of ALiBi, 0 without.
__device__ inline float ScoreOf(const AttentionParams& p, float dot, float slope, int64_t position,
                                int64_t j) {
  float score = p.scale * dot;
  if (p.softcap > 0.0f) score = p.softcap * Tanh(score * p.inverse_softcap);
  const int64_t difference = position - j;
  score -= slope * static_cast<float>(difference < 0 ? -difference : difference);
  return score;
}

__device__ inline float SlopeOf(const AttentionParams& p, int64_t head) {
  return p.alibi_slopes.present()
             ? p.alibi_slopes.As<const float>()[head * p.alibi_slopes.strides[0]]
             : 0.0f;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
