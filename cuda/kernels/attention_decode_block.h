// What a block of a decode kernel works on, and what becomes of its result: common to all caches.
//
// A block has one sequence, one key/value head and one part of the keys: a split of the cache, or
// the new keys. Query rows ("columns") that are more than a block has room for belong to further
// blocks, its neighbours in the grid: they read the keys at about the same time, so that the
// second-level cache has them. (Of packed queries, all are one block's, in passes.)
//
// A block's result, in shared memory, is for every column the largest score, the sum of
// exponentials relative to it, and the values weighted by them. If it is the only part it writes
// the output; else it leaves the result in the workspace and counts itself in, and the last one to
// arrive merges all parts, in their order (flash-decoding's merge in the same launch).
#pragma once

#include "core/ops/online_softmax.h"
#include "cuda/device/chunk.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/memory.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/kernels/attention_scores.h"
#include "cuda/kernels/attention_sequence.h"
#include "cuda/kernels/attention_weights.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

struct DecodeBlock {
  Sequence s;
  int kv_head, split;        // split == p.splits: the new keys
  int tokens;                // rows of q of the sequence, padding included
  int cache_len;             // keys in the cache
  int begin, end;            // keys that some row sees
  int all_begin, all_end;    // keys that every row sees
  int tiles;                 // of visible keys in the cache
  int used;                  // splits that have tiles, at least one if nobody else writes
  int parts;                 // and the new keys, if they are visible
  int first_tile, end_tile;  // of this split
  int first_pass;            // and every pass_blocks-th behind it
  bool idle;                 // nothing to do, nobody waits for it
};

__device__ inline DecodeBlock DecodeBlockOf(const DecodeParams& p, uint32_t index) {
  const AttentionParams& a = p.attention;
  const auto heads = static_cast<uint32_t>(a.k.dims[1]);
  const auto sequences = static_cast<uint32_t>(a.sequences);
  DecodeBlock block;
  const auto pass_blocks = static_cast<uint32_t>(p.pass_blocks);
  block.first_pass = static_cast<int>(index % pass_blocks);
  index /= pass_blocks;
  block.kv_head = static_cast<int>(index % heads);
  block.s = SequenceOf(a, index / heads % sequences);
  block.split = static_cast<int>(index / heads / sequences);
  const MaskRule& rule = block.s.rule;
  block.tokens = static_cast<int>(a.packed ? rule.q_len : a.q.dims[2]);
  block.cache_len = static_cast<int>(rule.kv_len - a.new_len);
  // The bounds of the visible keys never decrease from one query to the next.
  KeyRange first = {0, 0}, last = {0, 0};
  if (rule.q_len > 0) {
    first = rule.Range(0);
    last = rule.Range(rule.q_len - 1);
  }
  block.begin = static_cast<int>(first.begin);
  block.end = static_cast<int>(last.end);
  block.all_begin = static_cast<int>(last.begin);
  block.all_end = static_cast<int>(first.end);
  const int cached = block.end < block.cache_len ? block.end : block.cache_len;
  block.tiles = cached > block.begin ? (cached - block.begin + static_cast<int>(kDecodeTile) - 1) /
                                           static_cast<int>(kDecodeTile)
                                     : 0;
  const bool fresh = p.fresh && block.end > block.cache_len;
  int used = p.fixed_tiles > 0 ? (block.tiles + p.fixed_tiles - 1) / p.fixed_tiles : block.tiles;
  if (used > p.splits) used = p.splits;
  if (used == 0 && !fresh) used = 1;
  block.used = used;
  block.parts = used + (fresh ? 1 : 0);
  block.idle = block.split == p.splits ? !fresh : block.split >= used;
  if (p.fixed_tiles > 0) {
    block.first_tile = block.split * p.fixed_tiles;
    block.end_tile = block.first_tile + p.fixed_tiles;
    if (block.end_tile > block.tiles) block.end_tile = block.tiles;
  } else {
    const int each = used > 0 ? block.tiles / used : 0, more = block.tiles - each * used;
    block.first_tile = block.split * each + (block.split < more ? block.split : more);
    block.end_tile = block.first_tile + each + (block.split < more ? 1 : 0);
  }
  return block;
}

// One row of q.
struct DecodeColumn {
  int token;
  int64_t head, row;  // of q
  bool present;       // a row of q; else padding of the matrix
  bool real;          // of a query, not padding of a ragged batch
};
__device__ inline DecodeColumn DecodeColumnOf(const DecodeParams& p, const DecodeBlock& block,
                                              int column) {
  const auto group = static_cast<uint32_t>(p.attention.group.value());
  DecodeColumn c;
  c.token = static_cast<int>(static_cast<uint32_t>(column) / group);
  c.head = block.kv_head * static_cast<int64_t>(group) + static_cast<uint32_t>(column) % group;
  c.row = block.s.q_begin + c.token;
  c.present = c.token < block.tokens;
  c.real = c.present && c.token < block.s.rule.q_len;
  return c;
}

__device__ inline int64_t DecodeRowOffset(const DeviceTensor& t, const DecodeBlock& block,
                                          const DecodeColumn& c) {
  return block.s.q_batch * t.strides[0] + c.head * t.strides[1] + c.row * t.strides[2];
}

// The keys that each column sees, and what its scores need. After LoadQueries of the same threads'
// warps: q_factor is there. Needs a barrier before others read it.
template <typename Scores>
__device__ inline void FillColumns(const DecodeParams& p, const DecodeBlock& block,
                                   const DecodeShared& shared, int first_column) {
  static_assert(sizeof(typename Scores::Row) <= kDecodeRowBytes);
  for (int c = static_cast<int>(threadIdx.x); c < p.layout.columns;
       c += static_cast<int>(blockDim.x)) {
    const DecodeColumn column = DecodeColumnOf(p, block, first_column + c);
    KeyRange range = {0, 0};
    ScorePlace place = {block.s.batch, column.head, column.row, 0};
    if (column.real) {
      range = block.s.rule.Range(column.token);
      place.position = block.s.rule.Position(column.token);
    } else {
      place.head = place.row = 0;
    }
    shared.begin[c] = static_cast<int32_t>(range.begin);
    shared.end[c] = static_cast<int32_t>(range.end);
    reinterpret_cast<typename Scores::Row*>(shared.rows)[c] =
        Scores::RowOf(p.attention, place, shared.q_factor[c]);
  }
}

template <typename Scores>
__device__ inline const typename Scores::Row& DecodeRow(const DecodeShared& shared, int c) {
  return reinterpret_cast<const typename Scores::Row*>(shared.rows)[c];
}

// exp(score - max) of scores in the form of Scores. A score of -inf is that of a hidden key; a
// maximum of -inf that of none.
__device__ inline float DecodeWeight(float score, float max, float factor) {
  return Exp2Fast((score - (max == kNegInf ? 0.0f : max)) * factor);
}

// Writes one row of the output from its softmax state. `each(store)` calls store(n, value) for the
// elements of the weighted values that this lane has. A warp calls it.
template <typename Each>
__device__ inline void WriteRow(const DecodeParams& p, const DecodeBlock& block,
                                const DecodeColumn& column, float factor, float max, float sum,
                                const Each& each) {
  const AttentionParams& a = p.attention;
  SoftmaxState state;
  float rescale = 1.0f;
  if (column.real) {
    state.max = max == kNegInf ? kNegInf : max * factor * kLn2;
    state.sum = sum;
    if (a.sinks.present()) {  // a key without a value
      const float sink = a.sinks.As<const float>()[column.head * a.sinks.strides[0]];
      rescale = state.Merge({sink, ExpDiff(sink, sink)}).self;
    }
  }
  const float normalizer = rescale * state.Normalizer();
  const int64_t out = DecodeRowOffset(a.out, block, column);
  each([&](int n, float value) {
    // Padding of a ragged batch is 0, whatever was computed for it.
    StoreElement(a.out, out + n * a.out.strides[3], column.real ? value * normalizer : 0.0f);
  });
  if (LaneId() == 0 && a.lse.present()) {
    a.lse.As<float>()[DecodeRowOffset(a.lse, block, column)] = state.LogSumExp();
  }
}

__device__ inline int64_t DecodeRowIndex(const DecodeParams& p, const DecodeBlock& block,
                                         const DecodeColumn& c) {
  return (block.s.q_batch * p.attention.heads.value() + c.head) * p.attention.rows.value() + c.row;
}
__device__ inline int DecodeValueStride(const DecodeParams& p) {
  return (static_cast<int>(p.attention.out.dims[3]) + 3) / 4 * 4;
}

// The result of this block for columns first .. first + count (of the pass), which lies in
// shared.max, shared.sum and `values` (result_stride apart, from column 0 of these on). All threads
// call it, with the result complete.
template <typename Scores>
__device__ inline void KeepResult(const DecodeParams& p, const DecodeBlock& block,
                                  const DecodeShared& shared, const float* values, int pass_column,
                                  int first, int count) {
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int stride = DecodeValueStride(p), parts = p.splits + (p.fresh ? 1 : 0);
  const int width = static_cast<int>(p.attention.out.dims[3]);
  for (int i = WarpId(); i < count; i += warps) {
    const int c = first + i;
    const DecodeColumn column = DecodeColumnOf(p, block, pass_column + c);
    if (!column.present) break;  // nor are those behind it
    const float* from = values + i * p.layout.result_stride;
    const float max = shared.max[c], sum = shared.sum[c];
    if (block.parts == 1) {
      WriteRow(p, block, column, Scores::Factor(DecodeRow<Scores>(shared, c)), max, sum,
               [&](const auto& store) {
                 for (int n = LaneId(); n < width; n += kWarpSize) store(n, from[n]);
               });
      continue;
    }
    const int64_t part = DecodeRowIndex(p, block, column) * parts + block.split;
    for (int n = LaneId(); n < width; n += kWarpSize) {
      p.partial_values[part * stride + n] = from[n];
    }
    if (LaneId() == 0) {
      p.partial_states[part * 2] = max;
      p.partial_states[part * 2 + 1] = sum;
    }
  }
}

// Merges all parts of a column, in their order. A warp calls it.
template <typename Scores>
__device__ inline void MergeParts(const DecodeParams& p, const DecodeBlock& block,
                                  const DecodeColumn& column, float factor) {
  const int stride = DecodeValueStride(p), all = p.splits + (p.fresh ? 1 : 0);
  const int64_t first = DecodeRowIndex(p, block, column) * all;
  // Parts that nobody has written are skipped: the splits behind those in use.
  const auto place = [&](int i) { return first + (i < block.used ? i : p.splits); };
  float max = kNegInf;
  for (int i = LaneId(); i < block.parts; i += kWarpSize) {
    const float other = p.partial_states[place(i) * 2];
    max = other > max ? other : max;
  }
  max = WarpMax(max);
  float sum = 0.0f;
  // 4 elements of a row of 128 per lane, and of one of 256 another 4.
  float values[2][4] = {};
  for (int base = 0; base < block.parts; base += kWarpSize) {
    const int mine = base + LaneId();
    float weight = 0.0f, weighted = 0.0f;
    if (mine < block.parts) {
      weight = DecodeWeight(p.partial_states[place(mine) * 2], max, factor);
      weighted = weight * p.partial_states[place(mine) * 2 + 1];
    }
    sum += WarpSum(weighted);
    const int count = block.parts - base < kWarpSize ? block.parts - base : kWarpSize;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float* from = p.partial_values + place(base + i) * stride;
      const float w = Shuffle(weight, i);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = half * 128 + LaneId() * 4;
        if (n >= stride) continue;
        const Packed<16> four = LoadPacked<16>(from + n);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          values[half][k] = MultiplyAdd(w, std::bit_cast<float>(four.words[k]), values[half][k]);
        }
      }
    }
  }
  const int width = static_cast<int>(p.attention.out.dims[3]);
  WriteRow(p, block, column, factor, max, sum, [&](const auto& store) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int n = half * 128 + LaneId() * 4 + k;
        if (n < width) store(n, values[half][k]);
      }
    }
  });
}

// After KeepResult: counts this part in; the last one to arrive merges. All threads call it.
template <typename Scores>
__device__ inline void FinishPass(const DecodeParams& p, const DecodeBlock& block,
                                  const DecodeShared& shared, int pass, int pass_column) {
  if (block.parts == 1) return;
  FenceDevice();  // every thread's results, before the count
  SyncThreads();
  const auto last = static_cast<uint32_t>(block.parts - 1);
  if (threadIdx.x == 0) {
    const int64_t group = block.s.batch * p.attention.k.dims[1] + block.kv_head;
    // From `last` it goes back to 0, for the next launch.
    *shared.ticket = AtomicInc(p.counters + group * p.passes + pass, last);
  }
  SyncThreads();
  if (*shared.ticket != last) return;
  FenceDevice();
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int c = WarpId(); c < p.layout.columns; c += warps) {
    const DecodeColumn column = DecodeColumnOf(p, block, pass_column + c);
    if (!column.present) break;
    MergeParts<Scores>(p, block, column, Scores::Factor(DecodeRow<Scores>(shared, c)));
  }
}

// Rows of packed queries that no sequence has: only if the offsets are wrong. All threads call it.
__device__ inline void EmptyRowsOfNoSequence(const DecodeParams& p, const DecodeBlock& block) {
  const AttentionParams& a = p.attention;
  const int64_t rows = a.q.dims[2];
  const int threads = static_cast<int>(blockDim.x);
  bool wrong =
      a.q_offsets.At(0, 0, rows, 0) != 0 || a.q_offsets.At(a.sequences, 0, rows, 0) != rows;
  for (int64_t b = LaneId(); b < a.sequences; b += kWarpSize) {
    wrong = wrong || a.q_offsets.At(b, 0, rows, 0) > a.q_offsets.At(b + 1, 0, rows, 0);
  }
  if (!Any(wrong)) return;  // each warp for itself: they do the same
  const int group = static_cast<int>(a.group.value());
  for (int64_t row = WarpId(); row < rows; row += threads / kWarpSize) {
    const Sequence s = SequenceOfRow(a, 0, row);
    if (s.rule.q_len > 0 && row - s.q_begin < s.rule.q_len) continue;
    for (int g = 0; g < group; ++g) {
      DecodeColumn column = {0, block.kv_head * int64_t{group} + g, row, true, false};
      WriteRow(p, block, column, 0.0f, 0.0f, 0.0f, [&](const auto& store) {
        for (int n = LaneId(); n < static_cast<int>(a.out.dims[3]); n += kWarpSize) store(n, 0.0f);
      });
    }
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
