// What a task of prefill attention works on: its query rows, and where the rows of keys and values
// lie that it packs. Compiled once per target; the algorithm is described in attention_prefill.cc.
#if defined(TANDEM_CPU_ATTENTION_PREFILL_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_PREFILL_ROWS_INL_H_
#undef TANDEM_CPU_ATTENTION_PREFILL_ROWS_INL_H_
#else
#define TANDEM_CPU_ATTENTION_PREFILL_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/dtype.h"
#include "core/ops/attention.h"
#include "cpu/attention_prefill_plan.h"
#include "cpu/attention_prefill_scores-inl.h"
#include "cpu/attention_prefill_tile-inl.h"

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

// kFloat: scaled. Else pairs of bf16 as they are; the product with K is scaled instead. Rows up to
// a whole block are zero, and their results ignored.
template <typename T, PrefillProducts kHow>
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
        if constexpr (kHow != PrefillProducts::kFloat) {
          x = LoadPairs(row, i / kLanes, head_dim);
        } else {
          x = hn::Mul(LoadF32Part(row, i / kLanes, head_dim), scale);
        }
      }
      hn::Store(x, d, q + r * q_stride + i);
    }
  }
  std::fill(q + task.rows * q_stride, q + RoundUpTo(task.rows, PrefillBlockRows(kHow)) * q_stride,
            0.0f);
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
template <PrefillProducts kHow>
bool PackTile(const AttentionArgs& args, const AttentionSequence& sequence, int64_t batch,
              int64_t kv_head, KeyRange keys, int64_t k_depth, float* k, float* v) {
  KeyRows rows;
  FindRows(args, sequence, batch, kv_head, keys, rows);
  if constexpr (kHow != PrefillProducts::kFloat) {
    constexpr int kGrain = kHow == PrefillProducts::kTiles ? 32 : kLanes;
    PackKeyPairs<kGrain>(rows, keys.end - keys.begin, args.head_dim(), k_depth, k);
    return PackValuePairs<kGrain>(rows, keys.end - keys.begin, args.v_head_dim(), v);
  }
  const auto pack = [&]<typename T>() {
    PackKeys<T>(rows, keys.end - keys.begin, args.head_dim(), k);
    return PackValues<T>(rows, keys.end - keys.begin, args.v_head_dim(), v);
  };
  const DType dtype = (keys.begin < sequence.cache_len ? args.k : args.k_new).dtype;
  if (dtype == DType::kI8) return pack.template operator()<int8_t>();
  return DispatchFloat(dtype, pack);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
