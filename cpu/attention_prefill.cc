// Prefill attention: many query rows against many keys, as small matrix products. What counts is
// multiply-adds.
//
// Algorithm: FlashAttention-2 (Dao 2023) on the CPU. A task takes a tile of up to 192 query rows
// through the keys that they see, 128 at a time: pack K (transposed) and V to f32 panels, unless
// that was done ahead; S = Q K^T; modifiers and visibility (attention_prefill_scores-inl.h); online
// softmax; O = factor * O + P V (attention_prefill_process-inl.h). Q K^T is never materialised
// beyond rows x 128. The scale is multiplied into Q, sinks are merged into the final state.
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
// Where q and all keys are bf16, the same skeleton multiplies by bf16 dot products
// (attention_prefill_tile-inl.h) or by AMX tiles (attention_prefill_amx-inl.h): PrefillProducts.
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
#include "cpu/attention_prefill_process-inl.h"
#include "cpu/attention_prefill_rows-inl.h"
#include "cpu/attention_prefill_tile-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

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
  std::fill_n(s.started, task.plan.tile_rows / kPrefillRowBlock, false);
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

template <PrefillProducts kHow>
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
  if constexpr (kHow != PrefillProducts::kFloat) {
    LoadQueries<BF16, kHow>(task);
  } else {
    DispatchFloat(args.q.dtype, [&]<typename T>() { LoadQueries<T, kHow>(task); });
  }
  StartRows(task);

  KeyRange extent = {tile.key_begin, tile.key_end};
  const int64_t first_packed = plan.FirstPacked(tile.sequence);
  if (first_packed >= 0) {
    extent = VisibleExtent(task.sequence.rule, 0, task.sequence.rule.q_len - 1);
  }
  const KeyTiles tiles(extent.begin, extent.end, task.sequence.cache_len);
  // Tiles leave scaling to the exponential, behind the maximum.
  const bool modified =
      task.modifiers.any() || (kHow == PrefillProducts::kTiles && !(task.args.Scale() > 0.0f));
  const int64_t last = tile.key_begin < tile.key_end ? tiles.Find(tile.key_end - 1) : -1;
  for (int64_t i = last < 0 ? 0 : tiles.Find(tile.key_begin); i <= last; ++i) {
    const KeyRange keys = tiles.Keys(i);
    const bool full = !task.modifiers.has_bits() && keys.begin >= task.seen_by_all.begin &&
                      keys.end <= task.seen_by_all.end &&
                      (keys.end - keys.begin) % kKeyGrain<kHow> == 0;
    if (!full) {
      FindVisible(task, keys);
      if (!FindBlocks<kHow>(task)) continue;
    }
    Panels panels;
    if (first_packed >= 0) {
      const int64_t packed = (first_packed + i) * plan.kv_heads + kv_head;
      panels = {plan.packed_k + packed * plan.k_floats(), plan.packed_v + packed * plan.v_floats(),
                plan.packed_finite[packed]};
    } else {
      const bool finite =
          PackTile<kHow>(args, task.sequence, tile.sequence, kv_head, keys, plan.k_depth, s.k, s.v);
      panels = {s.k, s.v, finite};
    }
    if (full) {
      modified ? Process<true, true, kHow>(task, panels, keys)
               : Process<true, false, kHow>(task, panels, keys);
    } else {
      modified ? Process<false, true, kHow>(task, panels, keys)
               : Process<false, false, kHow>(task, panels, keys);
    }
  }

  constexpr int64_t kRows = PrefillBlockRows(kHow);
  for (int64_t block = 0; block * kRows < task.rows; ++block) {
    if (s.started[block]) continue;
    std::fill_n(s.acc + block * kRows * plan.acc_stride, kRows * plan.acc_stride, 0.0f);
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

template <PrefillProducts kHow>
absl::Status RunPrefill(const KernelContext& context, const AttentionArgs& args) {
  if (NothingToWrite(args)) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  PrefillPlan plan = MakePrefillPlan(args, kHow, pool.size(), *context.workspace);
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  PlanTiles(args, plan);
  pool.ParallelFor(plan.packed_count * plan.kv_heads, [&](int64_t index, int) {
    const PackedTile& tile = plan.packed[index / plan.kv_heads];
    plan.packed_finite[index] =
        PackTile<kHow>(args, args.Sequence(tile.sequence), tile.sequence, index % plan.kv_heads,
                       tile.keys, plan.k_depth, plan.packed_k + index * plan.k_floats(),
                       plan.packed_v + index * plan.v_floats());
  });
  pool.ParallelFor(plan.tile_count * plan.kv_heads, [&](int64_t index, int worker) {
#if HWY_TARGET == HWY_AVX3 && TANDEM_HAVE_AMX
    if constexpr (kHow == PrefillProducts::kTiles) {
      const TileConfig tiles(TileShapes::AllFull());
      return RunPrefillTask<kHow>(args, plan, index, worker);
    }
#endif
    RunPrefillTask<kHow>(args, plan, index, worker);
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

template <PrefillProducts kHow>
int64_t PrefillWorkspaceBytes(const KernelContext& context, const AttentionArgs& args) {
  if (NothingToWrite(args)) return 0;
  Workspace counting = Workspace::Counting();
  MakePrefillPlan(args, kHow, CpuStream::Of(context).pool().size(), counting);
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
  return CheckBf16Pairs(context, args);
}

absl::Status SupportsTiles(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(SupportsPairs(context, args));
  if (CpuStream::Of(context).features().amx_bf16) return absl::OkStatus();
  return Unimplemented("needs a processor with products of bf16 tiles (AMX_BF16)");
}

}  // namespace

Kernel<AttentionArgs> AttentionPrefill(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"prefill_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>,
              N_AVX3::PrefillWorkspaceBytes<PrefillProducts::kFloat>,
              N_AVX3::RunPrefill<PrefillProducts::kFloat>};
    case Isa::kAvx2:
      return {"prefill_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>,
              N_AVX2::PrefillWorkspaceBytes<PrefillProducts::kFloat>,
              N_AVX2::RunPrefill<PrefillProducts::kFloat>};
    default:
      return {"prefill_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>,
              TANDEM_N_SCALAR::PrefillWorkspaceBytes<PrefillProducts::kFloat>,
              TANDEM_N_SCALAR::RunPrefill<PrefillProducts::kFloat>};
  }
}

#if TANDEM_HAVE_AMX
inline constexpr PrefillProducts kTilesOrPairs = PrefillProducts::kTiles;
#else  // never supported
inline constexpr PrefillProducts kTilesOrPairs = PrefillProducts::kPairs;
#endif

Kernel<AttentionArgs> AttentionPrefillAmx() {
  return {"prefill_amx",
          DeviceKind::kCpu,
          SupportsTiles,
          N_AVX3::PrefillWorkspaceBytes<kTilesOrPairs>,
          N_AVX3::RunPrefill<kTilesOrPairs>,
          AppliesBf16Pairs};
}

Kernel<AttentionArgs> AttentionPrefillBf16Dot() {
  return {"prefill_bf16dot",
          DeviceKind::kCpu,
          SupportsPairs,
          N_AVX3::PrefillWorkspaceBytes<PrefillProducts::kPairs>,
          N_AVX3::RunPrefill<PrefillProducts::kPairs>,
          AppliesBf16Pairs};
}

}  // namespace tandem::cpu

#endif  // HWY_ONCE
