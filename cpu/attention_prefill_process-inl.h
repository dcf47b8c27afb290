// One tile of keys of prefill attention: scores, visibility, online softmax and the values they
// weigh, for all rows of a task. Compiled once per target; the algorithm is described in
// attention_prefill.cc.
#if defined(TANDEM_CPU_ATTENTION_PREFILL_PROCESS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_PREFILL_PROCESS_INL_H_
#undef TANDEM_CPU_ATTENTION_PREFILL_PROCESS_INL_H_
#else
#define TANDEM_CPU_ATTENTION_PREFILL_PROCESS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "core/ops/online_softmax.h"
#include "cpu/attention_prefill_amx-inl.h"
#include "cpu/attention_prefill_plan.h"
#include "cpu/attention_prefill_rows-inl.h"
#include "cpu/attention_prefill_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Keys come in multiples of this.
template <PrefillProducts kHow>
inline constexpr int64_t kKeyGrain = kHow == PrefillProducts::kTiles ? 32 : kLanes;

// S of a block of rows from `row` on, for vectors covering keys [begin, end) of one panel. Of
// tiles, it is not scaled.
template <PrefillProducts kHow>
HWY_INLINE void ScoreRows(const PrefillTask& task, const Panels& panels, int64_t row, int64_t panel,
                          int64_t begin, int64_t end, float scale) {
  const PrefillScratch& s = task.s;
  const int64_t first = std::max<int64_t>(begin - panel * kPanel, 0) / kLanes;
  const int64_t last = (std::min(end - panel * kPanel, kPanel) + kLanes - 1) / kLanes;
  if (first >= last) return;
  Product<kProductRows, kHow == PrefillProducts::kPairs>(
      s.q + row * task.plan.q_stride, task.plan.q_stride,
      panels.k + panel * kPanel * task.plan.k_depth, task.plan.k_depth,
      s.scores + row * kPrefillKeyTile + panel * kPanel, kPrefillKeyTile, nullptr, scale, first,
      last);
}

// O of kRows rows from `row` on, over keys [begin, end) of the tile. kPairs: whole pairs of keys;
// the weight of a key too many is 0.
template <int kRows, PrefillProducts kHow>
HWY_INLINE void AccumulateRows(const PrefillTask& task, const Panels& panels, int64_t row,
                               int64_t panel, int64_t begin, int64_t end, const float* factor) {
  const PrefillScratch& s = task.s;
  const int64_t columns = std::min(task.args.v_head_dim() - panel * kPanel, kPanel);
  constexpr bool kPairs = kHow == PrefillProducts::kPairs;
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
template <PrefillProducts kHow>
HWY_NOINLINE bool FindBlocks(const PrefillTask& task) {
  constexpr int64_t kRows = PrefillBlockRows(kHow);
  const PrefillScratch& s = task.s;
  bool any = false;
  for (int64_t block = 0; block * kRows < task.rows; ++block) {
    const int64_t first = block * kRows;
    const int64_t last = std::min(first + kRows, task.rows);
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

// factor = exp(max - next_max), and max = next_max, for rows [begin, end), whole vectors.
HWY_NOINLINE void UpdateMax(const PrefillScratch& s, int64_t begin, int64_t end) {
  const DF d;
  for (int64_t r = begin; r < end; r += kLanes) {
    const VF next = hn::Load(d, s.next_max + r);
    hn::Store(ExpDiffVec(hn::Load(d, s.max + r), next), d, s.factor + r);
    hn::Store(next, d, s.max + r);
  }
}

// O of a block whose rows do not all see the same keys, when V holds a NaN or an infinity.
template <PrefillProducts kHow>
HWY_NOINLINE void AccumulateExactly(const PrefillTask& task, const Panels& panels, int64_t block) {
  constexpr int64_t kRows = PrefillBlockRows(kHow);
  const PrefillScratch& s = task.s;
  const int64_t first = block * kRows;
  float* acc = s.acc + first * task.plan.acc_stride;
  if (!s.started[block]) std::fill_n(acc, kRows * task.plan.acc_stride, 0.0f);
  for (int64_t r = first; r < std::min(first + kRows, task.rows); ++r) {
    float factor = s.factor[r];
    const auto accumulate = [&](int64_t begin, int64_t end) {
      for (int64_t panel = 0; panel * kPanel < task.args.v_head_dim(); ++panel) {
        if constexpr (kHow != PrefillProducts::kFloat) {
          AccumulatePairsExactly(task, panels, r, panel, begin, end, factor);
        } else {
          AccumulateRows<1, kHow>(task, panels, r, panel, begin, end, &factor);
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

// The rows of out that a block, rows [first, last), will write: they arrive while it multiplies.
HWY_INLINE void PrefetchResults(const PrefillTask& task, int64_t first, int64_t last) {
  DispatchFloat(task.args.out.dtype, [&]<typename T>() {
    RowWalk<T> out(task, task.args.out, first);
    for (int64_t r = first; r < last; ++r) {
      Prefetch<true>(out.Next(), task.args.v_head_dim() * static_cast<int64_t>(sizeof(T)));
    }
  });
}

// What becomes of one tile of keys, in steps for a block of rows each. kFull: every row sees all of
// them, and they are whole vectors (kKeyGrain); else FindVisible and FindBlocks were called.
// kModified: more is done to scores than scaling by a positive number.
template <bool kFull, bool kModified, PrefillProducts kHow>
struct TileSteps {
  static constexpr int64_t kRows = PrefillBlockRows(kHow), kGrain = kKeyGrain<kHow>;
  static constexpr bool kTiles = kHow == PrefillProducts::kTiles;

  int64_t begin(int64_t block) const { return kFull ? 0 : task.s.block_begin[block]; }
  int64_t end(int64_t block) const {
    return kFull ? tile.end - tile.begin : task.s.block_end[block];
  }
  int64_t first(int64_t block) const { return begin(block) / kGrain * kGrain; }
  int64_t last(int64_t block) const { return RoundUpTo(end(block), kGrain); }
  int64_t end_row(int64_t block) const { return std::min((block + 1) * kRows, task.rows); }

  // Modifiers and visibility; next_max.
  HWY_INLINE void Modify(int64_t block) const {
    const PrefillScratch& s = task.s;
    const int64_t first = this->first(block), last = this->last(block);
    const int64_t keys = tile.end - tile.begin;
    for (int64_t r = block * kRows; r < end_row(block); ++r) {
      float* scores = s.scores + r * kPrefillKeyTile;
      if constexpr (kModified) {
        const int64_t query = task.Query(r), modified = std::min(last, RoundUpTo(keys, kLanes));
        if constexpr (kTiles) ModifyRow(scores, first, modified, Scaled{scale});
        task.modifiers.Modify(scores, first, modified, task.Head(r), task.sequence.q_begin + query,
                              task.sequence.rule.Position(query), tile.begin, keys);
      }
      if constexpr (!kFull) {
        if (kModified && task.modifiers.has_bits()) {
          MaskRowByBits(scores, first, last, s.bits + r * kBitWords);
        } else {
          MaskRow(scores, first, s.begin[r], s.end[r], last);
        }
      }
      if constexpr (kTiles) {
        const float max = RowMax(scores + first, last - first, kNegInf) * late_scale;
        s.next_max[r] = std::max(s.max[r], max);
      } else {
        s.next_max[r] = RowMax(scores + first, last - first, s.max[r]);
      }
    }
  }

  // Scores of a row become weights.
  HWY_INLINE void WeighRow(int64_t block, int64_t r) const {
    const PrefillScratch& s = task.s;
    RowExp<kHow != PrefillProducts::kFloat>(s.scores + r * kPrefillKeyTile, first(block),
                                            last(block), late_scale, s.max[r], s.factor[r],
                                            s.sum + r * kLanes);
  }
  HWY_INLINE void Weigh(int64_t block) const {
    for (int64_t r = block * kRows; r < end_row(block); ++r) WeighRow(block, r);
  }

  bool Exactly() const { return !kFull && !panels.v_finite; }
  const float* factor(int64_t block) const {
    return task.s.started[block] ? task.s.factor + block * kRows : nullptr;
  }

  const PrefillTask& task;
  const Panels& panels;
  KeyRange tile;
  float scale = task.args.Scale();
  // What scores are multiplied by on the way to weights.
  float late_scale = kTiles && !kModified ? scale : 1.0f;
};

// Panel by panel: one of K or V stays in the first-level cache while the rows pass.
template <bool kFull, bool kModified, PrefillProducts kHow>
HWY_NOINLINE void ProcessPanels(const PrefillTask& task, const Panels& panels, KeyRange tile) {
  const TileSteps<kFull, kModified, kHow> steps = {task, panels, tile};
  constexpr int64_t kRows = steps.kRows;
  const PrefillScratch& s = task.s;
  const int64_t blocks = RoundUpTo(task.rows, kRows) / kRows;
  for (int64_t panel = 0; panel * kPanel < tile.end - tile.begin; ++panel) {
    for (int64_t block = 0; block < blocks; ++block) {
      if (panel == 0 && !s.started[block]) {
        PrefetchResults(task, block * kRows, steps.end_row(block));
      }
      ScoreRows<kHow>(task, panels, block * kRows, panel, steps.begin(block), steps.end(block),
                      steps.scale);
    }
  }
  for (int64_t block = 0; block < blocks; ++block) steps.Modify(block);
  UpdateMax(s, 0, task.rows);
  for (int64_t block = 0; block < blocks; ++block) {
    if (steps.begin(block) < steps.end(block)) steps.Weigh(block);  // else max is as before
  }
  for (int64_t panel = 0; panel * kPanel < task.args.v_head_dim() && !steps.Exactly(); ++panel) {
    for (int64_t block = 0; block < blocks; ++block) {
      if (steps.begin(block) >= steps.end(block)) continue;
      AccumulateRows<kProductRows, kHow>(task, panels, block * kRows, panel, steps.begin(block),
                                         steps.end(block), steps.factor(block));
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    if (steps.begin(block) >= steps.end(block)) continue;
    if (steps.Exactly()) AccumulateExactly<kHow>(task, panels, block);
    s.started[block] = true;
  }
}

#if HWY_TARGET == HWY_AVX3 && TANDEM_HAVE_AMX
// Block by block: its scores stay in the nearer caches, K and V in the second. Tile products run
// beside the exponentials, a row of them per step: those of the scores of one block and of the
// values of another take the unit for tiles while the exponentials of the block between them take
// the units for vectors.
template <bool kFull, bool kModified>
HWY_NOINLINE void ProcessTiles(const PrefillTask& task, const Panels& panels, KeyRange tile) {
  constexpr PrefillProducts kHow = PrefillProducts::kTiles;
  const TileSteps<kFull, kModified, kHow> steps = {task, panels, tile};
  constexpr int64_t kRows = steps.kRows;
  const int64_t blocks = RoundUpTo(task.rows, kRows) / kRows;
  // The next block that sees any key.
  const auto behind = [&](int64_t block) {
    do {
      ++block;
    } while (block < blocks && steps.begin(block) >= steps.end(block));
    return block;
  };
  // Rows of `weighed` whose exponentials are still to be computed.
  int64_t weighed = 0, row = 0, end_row = 0;
  const auto weigh = [&]() HWY_ATTR {
    if (row < end_row) steps.WeighRow(weighed, row++);
  };
  const auto score = [&](int64_t block) HWY_ATTR {
    if (!task.s.started[block]) PrefetchResults(task, block * kRows, steps.end_row(block));
    ScoreTiles(task, panels, block * kRows, steps.first(block), steps.last(block), weigh);
  };
  const auto accumulate = [&](int64_t block) HWY_ATTR {
    if (steps.Exactly()) {
      AccumulateExactly<kHow>(task, panels, block);
    } else {
      AccumulateTiles(task, panels, block * kRows, steps.first(block), steps.last(block),
                      steps.factor(block), weigh);
    }
    task.s.started[block] = true;
  };
  const auto modify = [&](int64_t block) HWY_ATTR {
    steps.Modify(block);
    UpdateMax(task.s, block * kRows, (block + 1) * kRows);
  };
  int64_t before = -1, block = behind(-1);
  if (block == blocks) return;
  score(block);
  modify(block);
  while (block < blocks) {
    weighed = block;
    row = block * kRows;
    end_row = steps.end_row(block);
    const int64_t next = behind(block);
    if (next < blocks) score(next);
    if (before >= 0) accumulate(before);
    while (row < end_row) weigh();
    if (next < blocks) modify(next);
    before = block;
    block = next;
  }
  accumulate(before);
}
#endif

// All rows with one tile of keys.
template <bool kFull, bool kModified, PrefillProducts kHow>
HWY_INLINE void Process(const PrefillTask& task, const Panels& panels, KeyRange tile) {
#if HWY_TARGET == HWY_AVX3 && TANDEM_HAVE_AMX
  if constexpr (kHow == PrefillProducts::kTiles) {
    ProcessTiles<kFull, kModified>(task, panels, tile);
  } else
#endif
  {
    ProcessPanels<kFull, kModified, kHow>(task, panels, tile);
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
