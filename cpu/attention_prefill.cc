// Prefill attention: many query rows against many keys, as small matrix products. What counts is
// multiply-adds.
//
// Algorithm: FlashAttention-2 (Dao 2023) on the CPU. A task takes a tile of up to 192 query rows
// through the keys that they see, 128 at a time: pack K (transposed) and V to f32 panels, unless
// that was done ahead; S = Q K^T; modifiers and visibility (attention_prefill_scores-inl.h); online
// softmax; O = factor * O + P V (attention_prefill_tile-inl.h). Q K^T is never materialised beyond
// rows x 128. The scale is multiplied into Q, sinks are merged into the final state.
//
// Tasks: see attention_prefill_plan.h. They depend on the arguments only: results are bit-identical
// at any thread count.
//
// Memory traffic: K and V once in their own type and then their panels once per row tile, or in
// their own type once per row tile; Q, S, O and the panels in use stay in the second-level cache
// (0.4 MB at D = 128). Bias and mask are read where a row tile sees keys.
//
// Visibility: key tiles that no row of the row tile sees are neither packed nor multiplied. Tiles
// that all rows see run without checks. In between, each block of six rows computes the keys that
// any of its rows sees; scores that a row does not see become -inf, their weights 0. A weight of 0
// does not stop a NaN or an infinity in V, so if the packed V holds one, the rows of such a tile
// are multiplied one by one over exactly their own keys.
//
// Range: every variant of core/ops/attention.h, any sizes; D, Dv, q rows and out rows contiguous
// (stride 1); f32/f16/bf16 in any mixture of q, cache, new keys and out, and an i8 cache.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_prefill.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "core/dtype.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "core/status.h"
#include "cpu/attention_kernels.h"
#include "cpu/attention_prefill_plan.h"
#include "cpu/attention_prefill_scores-inl.h"
#include "cpu/attention_prefill_tile-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// One row tile of one key/value head, or a piece of its keys.
struct PrefillTask {
  PrefillTask(const AttentionArgs& a, const PrefillPlan& p, const PrefillTile& t, int64_t head,
              const PrefillScratch& scratch)
      : args(a),
        plan(p),
        tile(t),
        kv_head(head),
        sequence(a.Sequence(t.sequence)),
        rows(t.rows),
        padded_rows((t.rows + kProductRows - 1) / kProductRows * kProductRows),
        s(scratch),
        modifiers(a, t.sequence) {}

  int64_t Query(int64_t row) const { return (tile.first + row) / plan.group; }
  int64_t Head(int64_t row) const { return kv_head * plan.group + (tile.first + row) % plan.group; }
  const AttentionArgs& args;
  const PrefillPlan& plan;
  const PrefillTile& tile;
  int64_t kv_head;
  AttentionSequence sequence;
  int64_t rows;
  int64_t padded_rows;  // a multiple of kProductRows; the rows in between are zero and ignored
  PrefillScratch s;
  ScoreModifiers modifiers;
  KeyRange seen_by_all = {0, 0};
};

// Walks over the rows of a task in q, out or lse, without dividing.
template <typename T>
class RowWalk {
 public:
  RowWalk(const PrefillTask& task, const TensorView& view, int64_t row = 0)
      : group_(task.plan.group),
        head_((task.tile.first + row) % group_),
        next_head_(view.stride(1)),
        next_query_(view.stride(2) - (group_ - 1) * view.stride(1)),
        row_(view.At<T>(task.sequence.q_batch * view.stride(0) + task.Head(row) * view.stride(1) +
                        (task.sequence.q_begin + task.Query(row)) * view.stride(2))) {}
  T* Next() {
    T* row = row_;
    const bool last = ++head_ == group_;
    row_ += last ? next_query_ : next_head_;
    if (last) head_ = 0;
    return row;
  }

 private:
  int64_t group_, head_, next_head_, next_query_;
  T* row_;
};

// The packed keys of one tile.
struct Panels {
  const float* k;
  const float* v;
  bool v_finite;
};

// Into the second-level cache or nearer; `bytes` are about to be read or written.
template <bool kWrite>
HWY_INLINE void Prefetch(const void* address, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t i = 0; i < bytes; i += kLine) {
    __builtin_prefetch(static_cast<const char*>(address) + i, kWrite ? 1 : 0);
  }
}

// kPairs: pairs of bf16 as they are; the product with K is scaled instead.
template <typename T, bool kPairs>
HWY_NOINLINE void LoadQueries(const PrefillTask& task) {
  const DF d;
  const int64_t q_stride = task.plan.q_stride, head_dim = task.args.head_dim();
  const int64_t depth = task.plan.k_depth;
  const VF scale = hn::Set(d, task.args.Scale());
  float* HWY_RESTRICT q = task.s.q;
  // Rows of neighbouring heads lie far apart: the hardware does not see them coming.
  constexpr int64_t kAhead = 8;
  RowWalk<T> rows(task, task.args.q), ahead(task, task.args.q);
  const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(T));
  for (int64_t r = 0; r < std::min(kAhead, task.rows); ++r)
    Prefetch<false>(ahead.Next(), row_bytes);
  for (int64_t r = 0; r < task.rows; ++r) {
    if (r + kAhead < task.rows) Prefetch<false>(ahead.Next(), row_bytes);
    const T* row = rows.Next();
    for (int64_t i = 0; i < q_stride; i += kLanes) {
      VF x = hn::Zero(d);
      if (i < depth) {
        if constexpr (kPairs) {
          x = LoadPairs(row, i / kLanes, head_dim);
        } else {
          x = hn::Mul(LoadF32Part(row, i / kLanes, head_dim), scale);
        }
      }
      hn::Store(x, d, q + r * q_stride + i);
    }
  }
  std::fill(q + task.rows * q_stride, q + task.padded_rows * q_stride, 0.0f);
}

// ---- Keys

// Where the keys [begin, end) of a sequence lie; they are all in the cache or all new.
void FindRows(const AttentionArgs& args, const AttentionSequence& sequence, int64_t batch,
              int64_t kv_head, KeyRange keys, KeyRows& rows) {
  const bool cached = keys.begin < sequence.cache_len;
  const TensorView& k = cached ? args.k : args.k_new;
  const TensorView& v = cached ? args.v : args.v_new;
  const bool paged = cached && args.paged(), scaled = cached && args.k_scale.present();
  const int64_t k_row = BlockBytes(k.dtype) * k.stride(2),
                v_row = BlockBytes(v.dtype) * v.stride(2);
  // In runs of keys that lie in one page, or all at once.
  for (int64_t key = keys.begin; key < keys.end;) {
    int64_t outer = batch, first = cached ? key : key - sequence.cache_len, end = keys.end;
    if (paged) {
      const int64_t column = key / args.page_size();
      outer = *args.page_table.At<int32_t>(batch * args.page_table.stride(0) +
                                           column * args.page_table.stride(1));
      first = key - column * args.page_size();
      end = std::min(end, (column + 1) * args.page_size());
    }
    const char* k_first = k.As<char>() +
                          BlockBytes(k.dtype) * (outer * k.stride(0) + kv_head * k.stride(1)) +
                          first * k_row;
    const char* v_first = v.As<char>() +
                          BlockBytes(v.dtype) * (outer * v.stride(0) + kv_head * v.stride(1)) +
                          first * v_row;
    for (int64_t j = 0; j < end - key; ++j) {
      rows.k[key - keys.begin + j] = k_first + j * k_row;
      rows.v[key - keys.begin + j] = v_first + j * v_row;
      if (!scaled) continue;
      const auto scale = [&](const TensorView& list) {
        return *list.At<float>(outer * list.stride(0) + kv_head * list.stride(1) +
                               (first + j) * list.stride(2));
      };
      rows.k_scale[key - keys.begin + j] = scale(args.k_scale);
      rows.v_scale[key - keys.begin + j] = scale(args.v_scale);
    }
    key = end;
  }
}

// Packs such keys. Returns whether V is finite.
template <bool kPairs>
bool PackTile(const AttentionArgs& args, const AttentionSequence& sequence, int64_t batch,
              int64_t kv_head, KeyRange keys, float* k, float* v) {
  KeyRows rows;
  FindRows(args, sequence, batch, kv_head, keys, rows);
  if constexpr (kPairs) {
    PackKeyPairs(rows, keys.end - keys.begin, args.head_dim(), k);
    return PackValuePairs(rows, keys.end - keys.begin, args.v_head_dim(), v);
  }
  const auto pack = [&]<typename T>() {
    PackKeys<T>(rows, keys.end - keys.begin, args.head_dim(), k);
    return PackValues<T>(rows, keys.end - keys.begin, args.v_head_dim(), v);
  };
  const DType dtype = (keys.begin < sequence.cache_len ? args.k : args.k_new).dtype;
  if (dtype == DType::kI8) return pack.template operator()<int8_t>();
  return DispatchFloat(dtype, pack);
}

// ---- One tile of keys

// S of rows [row, row + 6) for vectors covering keys [begin, end) of one panel.
template <bool kPairs>
HWY_INLINE void ScoreRows(const PrefillTask& task, const Panels& panels, int64_t row, int64_t panel,
                          int64_t begin, int64_t end, float scale) {
  const PrefillScratch& s = task.s;
  const int64_t first = std::max<int64_t>(begin - panel * kPanel, 0) / kLanes;
  const int64_t last = (std::min(end - panel * kPanel, kPanel) + kLanes - 1) / kLanes;
  if (first >= last) return;
  Product<kProductRows, kPairs>(s.q + row * task.plan.q_stride, task.plan.q_stride,
                                panels.k + panel * kPanel * task.plan.k_depth, task.plan.k_depth,
                                s.scores + row * kPrefillKeyTile + panel * kPanel, kPrefillKeyTile,
                                nullptr, scale, first, last);
}

// O of kRows rows from `row` on, over keys [begin, end) of the tile. kPairs: whole pairs of keys;
// the weight of a key too many is 0.
template <int kRows, bool kPairs>
HWY_INLINE void AccumulateRows(const PrefillTask& task, const Panels& panels, int64_t row,
                               int64_t panel, int64_t begin, int64_t end, const float* factor) {
  const PrefillScratch& s = task.s;
  const int64_t columns = std::min(task.args.v_head_dim() - panel * kPanel, kPanel);
  if constexpr (kPairs) {
    begin = begin / 2;
    end = (end + 1) / 2;
  }
  Product<kRows, kPairs>(s.scores + row * kPrefillKeyTile + begin, kPrefillKeyTile,
                         panels.v + (panel * task.plan.v_depth + begin) * kPanel, end - begin,
                         s.acc + row * task.plan.acc_stride + panel * kPanel, task.plan.acc_stride,
                         factor, 1.0f, 0, (columns + kLanes - 1) / kLanes);
}

// One row over exactly keys [begin, end) of the tile, not their neighbours in pairs.
HWY_INLINE void AccumulatePairsExactly(const PrefillTask& task, const Panels& panels, int64_t row,
                                       int64_t panel, int64_t begin, int64_t end, float factor) {
  const DF d;
  const hn::RebindToUnsigned<DF> du;
  const int64_t columns = std::min(task.args.v_head_dim() - panel * kPanel, kPanel);
  const uint16_t* weights =
      reinterpret_cast<const uint16_t*>(task.s.scores + row * kPrefillKeyTile);
  for (int64_t i = 0; i < columns; i += kLanes) {
    float* acc = task.s.acc + row * task.plan.acc_stride + panel * kPanel + i;
    VF total = hn::Mul(hn::Load(d, acc), hn::Set(d, factor));
    for (int64_t j = begin; j < end; ++j) {
      const float* pairs = panels.v + (panel * task.plan.v_depth + j / 2) * kPanel + i;
      const auto bits = hn::BitCast(du, hn::LoadU(d, pairs));
      const auto value =
          j % 2 == 0 ? hn::ShiftLeft<16>(bits) : hn::And(bits, hn::Set(du, 0xFFFF0000u));
      uint16_t weight;
      std::memcpy(&weight, weights + j, sizeof weight);
      total = hn::MulAdd(hn::Set(d, ToFloat(BF16{weight})), hn::BitCast(d, value), total);
    }
    hn::Store(total, d, acc);
  }
}

// begin, end: keys of the tile [keys.begin, keys.end) that each row sees, relative to it; bits:
// which of them, given mask and bias.
HWY_NOINLINE void FindVisible(const PrefillTask& task, KeyRange keys) {
  const PrefillScratch& s = task.s;
  const int64_t count = keys.end - keys.begin;
  for (int64_t r = 0; r < task.rows; ++r) {
    s.begin[r] =
        static_cast<int32_t>(std::clamp<int64_t>(s.visible[r].begin - keys.begin, 0, count));
    s.end[r] = static_cast<int32_t>(std::clamp<int64_t>(s.visible[r].end - keys.begin, 0, count));
  }
  if (!task.modifiers.has_bits()) return;
  constexpr int64_t kAhead = 12;  // rows
  for (int64_t r = 0; r < task.rows; ++r) {
    if (r + kAhead < task.rows) {
      task.modifiers.PrefetchBias(
          task.Head(r + kAhead), task.sequence.q_begin + task.Query(r + kAhead), keys.begin, count);
    }
    uint32_t* bits = s.bits + r * kBitWords;
    if (r > 0 && task.modifiers.same_bits_for_heads() && task.Query(r) == task.Query(r - 1)) {
      std::copy(bits - kBitWords, bits, bits);
      continue;
    }
    RangeBits(s.begin[r], s.end[r], bits);
    task.modifiers.AndBits(task.Head(r), task.sequence.q_begin + task.Query(r), keys.begin, count,
                           bits);
  }
}

// block_begin, block_end: keys that any row of a block sees. Returns whether any block sees any.
HWY_NOINLINE bool FindBlocks(const PrefillTask& task) {
  const PrefillScratch& s = task.s;
  bool any = false;
  for (int64_t block = 0; block * kProductRows < task.rows; ++block) {
    const int64_t first = block * kProductRows;
    const int64_t last = std::min(first + kProductRows, task.rows);
    int64_t begin = kPrefillKeyTile, end = 0;
    if (task.modifiers.has_bits()) {
      for (int64_t w = 0; w < kBitWords; ++w) {
        uint32_t seen = 0;
        for (int64_t r = first; r < last; ++r) seen |= s.bits[r * kBitWords + w];
        if (seen == 0) continue;
        begin = std::min<int64_t>(begin, 32 * w + std::countr_zero(seen));
        end = 32 * w + 32 - std::countl_zero(seen);
      }
    } else {
      for (int64_t r = first; r < last; ++r) {
        if (s.begin[r] >= s.end[r]) continue;
        begin = std::min<int64_t>(begin, s.begin[r]);
        end = std::max<int64_t>(end, s.end[r]);
      }
    }
    any = any || begin < end;
    s.block_begin[block] = static_cast<int32_t>(std::min(begin, end));
    s.block_end[block] = static_cast<int32_t>(end);
  }
  return any;
}

// factor = exp(max - next_max), and max = next_max, for all rows.
HWY_NOINLINE void UpdateMax(const PrefillScratch& s, int64_t rows) {
  const DF d;
  for (int64_t r = 0; r < rows; r += kLanes) {
    const VF next = hn::Load(d, s.next_max + r);
    hn::Store(ExpDiffVec(hn::Load(d, s.max + r), next), d, s.factor + r);
    hn::Store(next, d, s.max + r);
  }
}

// O of a block whose rows do not all see the same keys, when V holds a NaN or an infinity.
template <bool kPairs>
HWY_NOINLINE void AccumulateExactly(const PrefillTask& task, const Panels& panels, int64_t block) {
  const PrefillScratch& s = task.s;
  const int64_t first = block * kProductRows;
  float* acc = s.acc + first * task.plan.acc_stride;
  if (!s.started[block]) std::fill_n(acc, kProductRows * task.plan.acc_stride, 0.0f);
  for (int64_t r = first; r < std::min(first + kProductRows, task.rows); ++r) {
    float factor = s.factor[r];
    const auto accumulate = [&](int64_t begin, int64_t end) {
      for (int64_t panel = 0; panel * kPanel < task.args.v_head_dim(); ++panel) {
        if constexpr (kPairs) {
          AccumulatePairsExactly(task, panels, r, panel, begin, end, factor);
        } else {
          AccumulateRows<1, false>(task, panels, r, panel, begin, end, &factor);
        }
      }
      factor = 1.0f;
    };
    if (task.modifiers.has_bits()) {
      ForEachRun(s.bits + r * kBitWords, accumulate);
    } else if (s.begin[r] < s.end[r]) {
      accumulate(s.begin[r], s.end[r]);
    }
    if (factor != 1.0f) accumulate(0, 0);  // saw nothing here
  }
}

// The rows of out that a block will write: they arrive while it multiplies.
HWY_INLINE void PrefetchResults(const PrefillTask& task, int64_t block) {
  DispatchFloat(task.args.out.dtype, [&]<typename T>() {
    RowWalk<T> out(task, task.args.out, block * kProductRows);
    for (int64_t r = block * kProductRows; r < std::min((block + 1) * kProductRows, task.rows);
         ++r) {
      Prefetch<true>(out.Next(), task.args.v_head_dim() * static_cast<int64_t>(sizeof(T)));
    }
  });
}

// All rows with one tile of keys. kFull: every row sees all of them, and they are whole vectors;
// else FindVisible and FindBlocks were called. kModified: more is done to scores than scaling.
template <bool kFull, bool kModified, bool kPairs>
HWY_NOINLINE void ProcessTile(const PrefillTask& task, const Panels& panels, KeyRange tile) {
  const PrefillScratch& s = task.s;
  const int64_t keys = tile.end - tile.begin;
  const int64_t blocks = task.padded_rows / kProductRows;
  const float scale = task.args.Scale();
  const auto begin_of = [&](int64_t block) -> int64_t { return kFull ? 0 : s.block_begin[block]; };
  const auto end_of = [&](int64_t block) -> int64_t { return kFull ? keys : s.block_end[block]; };
  for (int64_t panel = 0; panel * kPanel < keys; ++panel) {
    for (int64_t block = 0; block < blocks; ++block) {
      if (panel == 0 && !s.started[block]) PrefetchResults(task, block);
      ScoreRows<kPairs>(task, panels, block * kProductRows, panel, begin_of(block), end_of(block),
                        scale);
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = begin_of(block) / kLanes * kLanes;
    const int64_t last = (end_of(block) + kLanes - 1) / kLanes * kLanes;
    const int64_t end_row = std::min((block + 1) * kProductRows, task.rows);
    for (int64_t r = block * kProductRows; r < end_row; ++r) {
      float* scores = s.scores + r * kPrefillKeyTile;
      if constexpr (kModified) {
        const int64_t query = task.Query(r);
        task.modifiers.Modify(scores, first, last, task.Head(r), task.sequence.q_begin + query,
                              task.sequence.rule.Position(query), tile.begin, keys);
      }
      if constexpr (!kFull) {
        if (kModified && task.modifiers.has_bits()) {
          MaskRowByBits(scores, first, last, s.bits + r * kBitWords);
        } else {
          MaskRow(scores, first, s.begin[r], s.end[r], last);
        }
      }
      s.next_max[r] = RowMax(scores + first, last - first, s.max[r]);
    }
  }
  UpdateMax(s, task.rows);
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = begin_of(block), end = end_of(block);
    if (begin >= end) continue;  // max is as before
    const int64_t first = begin / kLanes * kLanes;
    const int64_t last = (end + kLanes - 1) / kLanes * kLanes;
    const int64_t end_row = std::min((block + 1) * kProductRows, task.rows);
    for (int64_t r = block * kProductRows; r < end_row; ++r) {
      RowExp<kPairs>(s.scores + r * kPrefillKeyTile, first, last, s.max[r], s.factor[r],
                     s.sum + r * kLanes);
    }
  }
  const bool exactly = !kFull && !panels.v_finite;
  for (int64_t panel = 0; panel * kPanel < task.args.v_head_dim() && !exactly; ++panel) {
    for (int64_t block = 0; block < blocks; ++block) {
      if (begin_of(block) >= end_of(block)) continue;
      AccumulateRows<kProductRows, kPairs>(
          task, panels, block * kProductRows, panel, begin_of(block), end_of(block),
          s.started[block] ? s.factor + block * kProductRows : nullptr);
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    if (begin_of(block) >= end_of(block)) continue;
    if (exactly) AccumulateExactly<kPairs>(task, panels, block);
    s.started[block] = true;
  }
}

// ---- Results

// Writes rows of accumulators and their states, with the sinks. Overwrites sum.
template <typename T>
HWY_NOINLINE void StoreRows(const PrefillTask& task, const float* HWY_RESTRICT acc,
                            const float* HWY_RESTRICT max, float* HWY_RESTRICT sum) {
  const DF d;
  const int64_t v_head_dim = task.args.v_head_dim();
  RowWalk<T> outs(task, task.args.out);
  for (int64_t r = 0; r < task.rows; ++r) {
    SoftmaxState state = {max[r], sum[r]};
    float scale = 1.0f;
    if (task.args.sinks.present()) {
      const float sink = *task.args.sinks.At<float>(task.Head(r) * task.args.sinks.stride(0));
      scale = state.Merge({sink, ExpDiff(sink, sink)}).self;  // a sink of -inf adds nothing
    }
    const VF normalizer = hn::Set(d, scale * state.Normalizer());
    T* out = outs.Next();
    for (int64_t i = 0; i < v_head_dim; i += kLanes) {
      StoreF32(hn::Mul(hn::Load(d, acc + r * task.plan.acc_stride + i), normalizer), out + i,
               std::min<int64_t>(kLanes, v_head_dim - i));
    }
    sum[r] = state.LogSumExp();
  }
  if (!task.args.lse.present()) return;
  RowWalk<float> lse(task, task.args.lse);
  for (int64_t r = 0; r < task.rows; ++r) *lse.Next() = sum[r];
}

// The results of a task that saw all its keys, or of merged pieces.
void Finish(const PrefillTask& task, const float* acc, const float* max, float* sum) {
  DispatchFloat(task.args.out.dtype, [&]<typename T>() { StoreRows<T>(task, acc, max, sum); });
}

// Merges piece 1, 2, ... of a tile into piece 0, in this order.
void MergePieces(const AttentionArgs& args, const PrefillPlan& plan, const PrefillTile& tile,
                 int64_t kv_head) {
  const DF d;
  const auto slot = [&](int64_t piece) {
    return ((tile.slot + piece) * plan.kv_heads + kv_head) * plan.tile_rows;
  };
  float* acc = plan.partial_acc + slot(0) * plan.acc_stride;
  float* max = plan.partial_max + slot(0);
  float* sum = plan.partial_sum + slot(0);
  for (int64_t piece = 1; piece < tile.pieces; ++piece) {
    const int64_t other = slot(piece);
    const float* HWY_RESTRICT other_acc = plan.partial_acc + other * plan.acc_stride;
    for (int64_t r = 0; r < tile.rows; ++r) {
      SoftmaxState state = {max[r], sum[r]};
      const SoftmaxState::Scales scales =
          state.Merge({plan.partial_max[other + r], plan.partial_sum[other + r]});
      max[r] = state.max;
      sum[r] = state.sum;
      const VF self = hn::Set(d, scales.self), more = hn::Set(d, scales.other);
      for (int64_t i = r * plan.acc_stride; i < (r + 1) * plan.acc_stride; i += kLanes) {
        hn::Store(hn::MulAdd(hn::Load(d, other_acc + i), more, hn::Mul(hn::Load(d, acc + i), self)),
                  d, acc + i);
      }
    }
  }
  Finish(PrefillTask(args, plan, tile, kv_head, plan.scratch), acc, max, sum);
}

// ---- Tasks

// Scratch for the first tile of keys.
void StartRows(PrefillTask& task) {
  const PrefillScratch& s = task.s;
  std::fill_n(s.sum, task.plan.tile_rows * kLanes, 0.0f);
  std::fill_n(s.max, task.plan.tile_rows, kNegInf);
  std::fill_n(s.next_max, task.plan.tile_rows, kNegInf);
  std::fill_n(s.factor, task.plan.tile_rows, 1.0f);
  std::fill_n(s.started, task.plan.tile_rows / kProductRows, false);
  KeyRange all = {task.tile.key_begin, task.tile.key_end};
  for (int64_t r = 0; r < task.rows;) {
    const int64_t query = task.Query(r);
    KeyRange visible = task.sequence.rule.Range(query);
    visible.begin = std::max(visible.begin, task.tile.key_begin);
    visible.end = std::min(visible.end, task.tile.key_end);
    all = {std::max(all.begin, visible.begin), std::min(all.end, visible.end)};
    const int64_t end = std::min((query + 1) * task.plan.group - task.tile.first, task.rows);
    while (r < end) s.visible[r++] = visible;
  }
  task.seen_by_all = all;
}

template <bool kPairs>
void RunPrefillTask(const AttentionArgs& args, const PrefillPlan& plan, int64_t index, int worker) {
  const PrefillTile& tile = plan.tiles[index / plan.kv_heads];
  PrefillScratch scratch = OfWorker(plan, worker);
  const int64_t kv_head = index % plan.kv_heads;
  const int64_t slot = ((tile.slot + tile.piece) * plan.kv_heads + kv_head) * plan.tile_rows;
  if (tile.pieces > 1) {
    scratch.acc = plan.partial_acc + slot * plan.acc_stride;
    scratch.max = plan.partial_max + slot;
  }
  PrefillTask task(args, plan, tile, kv_head, scratch);
  const PrefillScratch& s = task.s;
  if constexpr (kPairs) {
    LoadQueries<BF16, true>(task);
  } else {
    DispatchFloat(args.q.dtype, [&]<typename T>() { LoadQueries<T, false>(task); });
  }
  StartRows(task);

  KeyRange extent = {tile.key_begin, tile.key_end};
  const int64_t first_packed = plan.FirstPacked(tile.sequence);
  if (first_packed >= 0) {
    extent = VisibleExtent(task.sequence.rule, 0, task.sequence.rule.q_len - 1);
  }
  const KeyTiles tiles(extent.begin, extent.end, task.sequence.cache_len);
  const bool modified = task.modifiers.any();
  const int64_t last = tile.key_begin < tile.key_end ? tiles.Find(tile.key_end - 1) : -1;
  for (int64_t i = last < 0 ? 0 : tiles.Find(tile.key_begin); i <= last; ++i) {
    const KeyRange keys = tiles.Keys(i);
    const bool full = !task.modifiers.has_bits() && keys.begin >= task.seen_by_all.begin &&
                      keys.end <= task.seen_by_all.end && (keys.end - keys.begin) % kLanes == 0;
    if (!full) {
      FindVisible(task, keys);
      if (!FindBlocks(task)) continue;
    }
    Panels panels;
    if (first_packed >= 0) {
      const int64_t packed = (first_packed + i) * plan.kv_heads + kv_head;
      panels = {plan.packed_k + packed * plan.k_floats(), plan.packed_v + packed * plan.v_floats(),
                plan.packed_finite[packed]};
    } else {
      const bool finite =
          PackTile<kPairs>(args, task.sequence, tile.sequence, kv_head, keys, s.k, s.v);
      panels = {s.k, s.v, finite};
    }
    if (full) {
      modified ? ProcessTile<true, true, kPairs>(task, panels, keys)
               : ProcessTile<true, false, kPairs>(task, panels, keys);
    } else {
      modified ? ProcessTile<false, true, kPairs>(task, panels, keys)
               : ProcessTile<false, false, kPairs>(task, panels, keys);
    }
  }

  for (int64_t block = 0; block * kProductRows < task.rows; ++block) {
    if (s.started[block]) continue;
    std::fill_n(s.acc + block * kProductRows * plan.acc_stride, kProductRows * plan.acc_stride,
                0.0f);
  }
  // The partial sums of a row become its sum.
  float* sum = tile.pieces > 1 ? plan.partial_sum + slot : s.factor;
  for (int64_t r = 0; r < task.rows; ++r) {
    float total = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) total += s.sum[r * kLanes + lane];
    sum[r] = total;
  }
  if (tile.pieces == 1) Finish(task, s.acc, s.max, sum);
}

// Rows behind the last query of their sequence.
void ClearRows(const AttentionArgs& args, int64_t batch, int64_t head) {
  for (int64_t i = args.Sequence(batch).rule.q_len; i < args.q_len(); ++i) {
    DispatchFloat(args.out.dtype, [&]<typename T>() {
      T* out = args.out.At<T>(batch * args.out.stride(0) + head * args.out.stride(1) +
                              i * args.out.stride(2));
      std::fill_n(out, args.v_head_dim(), FromFloat<T>(0.0f));
    });
    if (!args.lse.present()) continue;
    *args.lse.At<float>(batch * args.lse.stride(0) + head * args.lse.stride(1) +
                        i * args.lse.stride(2)) = kNegInf;
  }
}

bool NothingToWrite(const AttentionArgs& args) {
  return args.out.empty() && (!args.lse.present() || args.lse.empty());
}

template <bool kPairs>
absl::Status RunPrefill(const KernelContext& context, const AttentionArgs& args) {
  if (NothingToWrite(args)) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  PrefillPlan plan = MakePrefillPlan(args, kPairs, pool.size(), *context.workspace);
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  PlanTiles(args, plan);
  pool.ParallelFor(plan.packed_count * plan.kv_heads, [&](int64_t index, int) {
    const PackedTile& tile = plan.packed[index / plan.kv_heads];
    plan.packed_finite[index] = PackTile<kPairs>(
        args, args.Sequence(tile.sequence), tile.sequence, index % plan.kv_heads, tile.keys,
        plan.packed_k + index * plan.k_floats(), plan.packed_v + index * plan.v_floats());
  });
  pool.ParallelFor(plan.tile_count * plan.kv_heads, [&](int64_t index, int worker) {
    RunPrefillTask<kPairs>(args, plan, index, worker);
  });
  if (plan.max_pieces > 1) {
    pool.ParallelFor(plan.tile_count * plan.kv_heads, [&](int64_t index, int) {
      const PrefillTile& tile = plan.tiles[index / plan.kv_heads];
      if (tile.pieces > 1 && tile.piece == 0) {
        MergePieces(args, plan, tile, index % plan.kv_heads);
      }
    });
  }
  if (args.q_lens.present()) {
    pool.ParallelFor(args.batch() * args.q_heads(), [&](int64_t index, int) {
      ClearRows(args, index / args.q_heads(), index % args.q_heads());
    });
  }
  return absl::OkStatus();
}

template <bool kPairs>
int64_t PrefillWorkspaceBytes(const KernelContext& context, const AttentionArgs& args) {
  if (NothingToWrite(args)) return 0;
  Workspace counting = Workspace::Counting();
  MakePrefillPlan(args, kPairs, CpuStream::Of(context).pool().size(), counting);
  return counting.bytes_used();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  return CheckContiguousRows(args);
}

absl::Status SupportsPairs(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(Supports<Isa::kAvx512>(context, args));
  if (!CpuStream::Of(context).features().avx512_bf16) {
    return Unimplemented("needs a processor with bf16 dot products (AVX512_BF16)");
  }
  for (const auto& [name, view] :
       {std::pair("q", &args.q), std::pair("k", &args.k), std::pair("k_new", &args.k_new)}) {
    if (!view->present() || view->dtype == DType::kBF16) continue;
    return Unimplemented(name, ": needs bf16, got ", std::string(Name(view->dtype)));
  }
  return absl::OkStatus();
}

}  // namespace

Kernel<AttentionArgs> AttentionPrefill(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"prefill_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>,
              N_AVX3::PrefillWorkspaceBytes<false>, N_AVX3::RunPrefill<false>};
    case Isa::kAvx2:
      return {"prefill_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>,
              N_AVX2::PrefillWorkspaceBytes<false>, N_AVX2::RunPrefill<false>};
    default:
      return {"prefill_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>,
              TANDEM_N_SCALAR::PrefillWorkspaceBytes<false>, TANDEM_N_SCALAR::RunPrefill<false>};
  }
}

Kernel<AttentionArgs> AttentionPrefillBf16Dot() {
  return {"prefill_bf16dot", DeviceKind::kCpu, SupportsPairs, N_AVX3::PrefillWorkspaceBytes<true>,
          N_AVX3::RunPrefill<true>};
}

}  // namespace tandem::cpu

#endif  // HWY_ONCE
