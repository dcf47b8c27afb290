// What a block of the kernel `hopper` works on: the order of its tiles, and the keys that a tile of
// queries needs.
#pragma once

#include "cuda/device/target.h"
#include "cuda/kernels/attention_hopper.h"
#include "cuda/kernels/attention_sequence.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Queries first_query.. of one head of a sequence, and the tiles of keys [begin, end) that any of
// them sees; all of them see all keys of the tiles [whole_begin, whole_end).
struct HopperWork {
  Sequence sequence;
  int64_t head;
  int32_t kv_head;
  int64_t first_query;
  int rows;       // queries
  int rows_kept;  // rows of q, queries or not: they get an output
  int begin, end, whole_begin, whole_end;
};

// The sequence of a packed batch that row block `block` belongs to, and which of its blocks it is.
struct HopperBlock {
  int64_t batch, index;
};
__device__ inline HopperBlock PackedBlockOf(const AttentionParams& p, int64_t block, int rows) {
  const int64_t all = p.q.dims[2];
  int64_t before = 0;
#pragma unroll 1
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t begin = p.q_offsets.At(b, 0, all, 0), end = p.q_offsets.At(b + 1, 0, all, 0);
    const int64_t blocks =
        end > begin ? static_cast<uint32_t>(end - begin + rows - 1) / static_cast<uint32_t>(rows)
                    : 0;
    if (block < before + blocks) return {b, block - before};
    before += blocks;
  }
  return {p.sequences, 0};
}

// Tile `tile` of the order in which they are worked on: heads in sections whose keys and values fit
// the L2 cache together; in a section the last row blocks, which see most keys if the mask is
// causal, come first.
template <int kRows, int kKeys>
__device__ inline HopperWork HopperWorkOf(const HopperParams& params, uint32_t tile) {
  const AttentionParams& p = params.attention;
  const uint32_t section = tile / (params.section * params.blocks);
  const uint32_t first = section * params.section, left = params.heads - first;
  const uint32_t size = left < params.section ? left : params.section;
  const uint32_t rest = tile - first * params.blocks, from_last = rest / size;
  const uint32_t flat = first + rest - from_last * size;
  const int64_t block = params.blocks - 1 - from_last;
  const Divisor::Result head = p.heads.Divide(flat);

  HopperWork w;
  w.head = head.remainder;
  w.kv_head = static_cast<int32_t>(p.group.Divide(w.head).quotient);
  w.rows = w.rows_kept = w.begin = w.end = w.whole_begin = w.whole_end = 0;
  HopperBlock at = {head.quotient, block};
  if (p.packed) {
    at = PackedBlockOf(p, block, kRows);
    if (at.batch >= p.sequences) return w;
  }
  w.sequence = SequenceOf(p, at.batch);
  w.first_query = at.index * kRows;
  const auto clip = [](int64_t n) {
    return static_cast<int>(n < 0 ? 0 : n > kRows ? int64_t{kRows} : n);
  };
  w.rows = clip(w.sequence.rule.q_len - w.first_query);
  w.rows_kept = p.packed ? w.rows : clip(p.q.dims[2] - w.first_query);
  if (w.rows == 0) return w;
  // Both bounds never decrease from one query to the next.
  const KeyRange low = w.sequence.rule.Range(w.first_query);
  const KeyRange high = w.sequence.rule.Range(w.first_query + w.rows - 1);
  const auto begin = static_cast<uint32_t>(low.begin), end = static_cast<uint32_t>(high.end);
  const auto all_begin = static_cast<uint32_t>(high.begin),
             all_end = static_cast<uint32_t>(low.end);
  if (begin >= end) return w;
  w.begin = static_cast<int>(begin / kKeys);
  w.end = static_cast<int>((end + kKeys - 1) / kKeys);
  w.whole_begin = static_cast<int>((all_begin + kKeys - 1) / kKeys);
  w.whole_end = static_cast<int>(all_end / kKeys);
  return w;
}

// The how-manieth tile (or none) a block takes in its round `round`: back and forth, so that the
// blocks that had the longest of a round get the shortest of the next.
__device__ inline uint32_t HopperTileOfRound(uint32_t round) {
  const uint32_t place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  return round * gridDim.x + place;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
