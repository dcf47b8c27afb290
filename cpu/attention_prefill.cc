// Prefill attention: many query rows against many keys, as small matrix products. What counts is
// multiply-adds.
//
// Algorithm: FlashAttention-2 (Dao 2023) on the CPU. The Hq / Hkv * Sq query rows of one key/value
// head are numbered query-major (row = query * group + head) and cut into tiles of up to 192 rows;
// a task takes one tile of rows through the visible keys, 128 at a time: pack K (transposed) and V
// to f32 panels, S = Q K^T, online softmax, O = factor * O + P V (attention_prefill_tile-inl.h). Q
// K^T is never materialised beyond rows x 128.
//
// Tasks: (row tile, batch, kv head), the tiles with the most keys first. Tiles depend on the
// arguments only: results are bit-identical at any thread count.
//
// Memory traffic: K and V once per row tile, in their own type; Q, S, O and the panels of a task
// stay in the second-level cache (0.4 MB at D = 128).
//
// Visibility: key tiles that no row of the tile sees are never read. Tiles that all rows see run
// without checks. In between, each block of six rows computes the keys that any of its rows sees;
// scores that a row does not see become -inf, their weights 0. A weight of 0 does not stop a NaN or
// an infinity in V, so if the packed V holds one, the rows of such a tile are multiplied one by one
// over exactly their own keys.
//
// Range: any sizes; D, Dv, q rows and out rows contiguous (stride 1); f32/f16/bf16 in any mixture
// of q, cache, new keys and out.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_prefill.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "core/status.h"
#include "cpu/attention_kernels.h"
#include "cpu/attention_prefill_tile-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Scratch of one worker.
struct PrefillScratch {
  float* q;       // [tile_rows][q_stride]
  float* scores;  // [tile_rows][kKeyTile]
  float* acc;     // [tile_rows][acc_stride]
  float* k;       // [kKeyTile / kPanel][D][kPanel]
  float* v;       // [acc_stride / kPanel][kKeyTile][kPanel]
  float* sum;     // [tile_rows][kLanes]
  float* max;     // [tile_rows]
  float* next_max;
  float* factor;
};

struct PrefillPlan {
  int64_t group;
  int64_t rows;       // per kv head
  int64_t tile_rows;  // a multiple of kProductRows and of kLanes
  int64_t row_tiles;
  int64_t heads;           // B * Hkv
  int64_t q_stride;        // floats
  int64_t acc_stride;      // floats, whole panels
  PrefillScratch scratch;  // of worker 0; the others follow
};

int64_t RoundUpTo(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Large tiles spread the packing of K and V over more rows, small ones give more threads work. A
// function of the problem alone.
int64_t TileRows(int64_t rows, int64_t heads) {
  constexpr int64_t kSmall = 96, kLarge = 192;  // multiples of 6 and 16
  if (rows <= kSmall) return kSmall;
  return rows * heads >= kLarge * 64 ? kLarge : kSmall;
}

PrefillPlan MakePrefillPlan(const AttentionArgs& args, int64_t workers, Workspace& workspace) {
  PrefillPlan plan = {};
  plan.group = args.group();
  plan.rows = plan.group * args.q_len();
  plan.heads = args.batch() * args.kv_heads();
  plan.tile_rows = TileRows(plan.rows, plan.heads);
  plan.row_tiles = (plan.rows + plan.tile_rows - 1) / plan.tile_rows;
  plan.q_stride = RoundUpTo(args.head_dim(), kLanes);
  plan.acc_stride = std::max(RoundUpTo(args.v_head_dim(), kPanel), kPanel);
  plan.scratch.q = workspace.Take<float>(workers * plan.tile_rows * plan.q_stride);
  plan.scratch.scores = workspace.Take<float>(workers * plan.tile_rows * kKeyTile);
  plan.scratch.acc = workspace.Take<float>(workers * plan.tile_rows * plan.acc_stride);
  plan.scratch.k = workspace.Take<float>(workers * kKeyTile * args.head_dim());
  plan.scratch.v = workspace.Take<float>(workers * kKeyTile * plan.acc_stride);
  plan.scratch.sum = workspace.Take<float>(workers * plan.tile_rows * kLanes);
  plan.scratch.max = workspace.Take<float>(workers * plan.tile_rows);
  plan.scratch.next_max = workspace.Take<float>(workers * plan.tile_rows);
  plan.scratch.factor = workspace.Take<float>(workers * plan.tile_rows);
  return plan;
}

PrefillScratch OfWorker(const PrefillPlan& plan, const AttentionArgs& args, int worker) {
  PrefillScratch s = plan.scratch;
  s.q += worker * plan.tile_rows * plan.q_stride;
  s.scores += worker * plan.tile_rows * kKeyTile;
  s.acc += worker * plan.tile_rows * plan.acc_stride;
  s.k += worker * kKeyTile * args.head_dim();
  s.v += worker * kKeyTile * plan.acc_stride;
  s.sum += worker * plan.tile_rows * kLanes;
  s.max += worker * plan.tile_rows;
  s.next_max += worker * plan.tile_rows;
  s.factor += worker * plan.tile_rows;
  return s;
}

// The rows of one task.
struct RowTile {
  int64_t head;   // batch * Hkv + kv head
  int64_t first;  // number of its first row among those of the kv head
  int64_t rows;
  int64_t padded_rows;  // a multiple of kProductRows; the rows in between are zero and ignored
  int64_t batch, kv_head;
};

template <typename T>
T* RowOf(const AttentionArgs& args, const TensorView& view, const RowTile& tile, int64_t row) {
  const int64_t group = args.group();
  return view.At<T>(tile.batch * view.stride(0) +
                    (tile.kv_head * group + row % group) * view.stride(1) +
                    row / group * view.stride(2));
}

template <typename T>
HWY_NOINLINE void LoadQueries(const AttentionArgs& args, const RowTile& tile, int64_t q_stride,
                              float* HWY_RESTRICT q) {
  const DF d;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* row = RowOf<T>(args, args.q, tile, tile.first + r);
    for (int64_t i = 0; i < q_stride; i += kLanes) {
      hn::Store(LoadF32Part(row, i / kLanes, args.head_dim()), d, q + r * q_stride + i);
    }
  }
  std::fill(q + tile.rows * q_stride, q + tile.padded_rows * q_stride, 0.0f);
}

template <typename T>
HWY_NOINLINE void StoreRows(const AttentionArgs& args, const PrefillPlan& plan, const RowTile& tile,
                            const PrefillScratch& s) {
  const DF d;
  const int64_t v_head_dim = args.v_head_dim();
  for (int64_t r = 0; r < tile.rows; ++r) {
    float sum = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) sum += s.sum[r * kLanes + lane];
    const SoftmaxState state = {s.max[r], sum};
    const VF normalizer = hn::Set(d, state.Normalizer());
    T* out = RowOf<T>(args, args.out, tile, tile.first + r);
    for (int64_t i = 0; i < v_head_dim; i += kLanes) {
      StoreF32(hn::Mul(hn::LoadU(d, s.acc + r * plan.acc_stride + i), normalizer), out + i,
               std::min<int64_t>(kLanes, v_head_dim - i));
    }
    if (args.lse.present()) {
      *RowOf<float>(args, args.lse, tile, tile.first + r) = state.LogSumExp();
    }
  }
}

// Packs keys [begin, end) of the sequence, which lie in one source. Returns whether V is finite.
bool PackTile(const AttentionArgs& args, const RowTile& tile, int64_t begin, int64_t end,
              const PrefillScratch& s) {
  const bool cached = begin < args.cache_len();
  const TensorView& k = cached ? args.k : args.k_new;
  const TensorView& v = cached ? args.v : args.v_new;
  const int64_t key = cached ? begin : begin - args.cache_len();
  return DispatchFloat(k.dtype, [&]<typename T>() {
    PackKeys<T>(k.At<T>(tile.batch * k.stride(0) + tile.kv_head * k.stride(1) + key * k.stride(2)),
                k.stride(2), end - begin, args.head_dim(), s.k);
    return PackValues<T>(
        v.At<T>(tile.batch * v.stride(0) + tile.kv_head * v.stride(1) + key * v.stride(2)),
        v.stride(2), end - begin, args.v_head_dim(), s.v);
  });
}

// S of rows [row, row + 6) for vectors covering keys [begin, end) of the tile.
void ScoreRows(const AttentionArgs& args, const PrefillPlan& plan, const PrefillScratch& s,
               int64_t row, int64_t begin, int64_t end) {
  for (int64_t panel = begin / kPanel; panel * kPanel < end; ++panel) {
    const int64_t first = std::max(begin - panel * kPanel, int64_t{0}) / kLanes;
    const int64_t last = (std::min(end - panel * kPanel, kPanel) + kLanes - 1) / kLanes;
    Product<kProductRows>(s.q + row * plan.q_stride, plan.q_stride,
                          s.k + panel * kPanel * args.head_dim(), args.head_dim(),
                          s.scores + row * kKeyTile + panel * kPanel, kKeyTile, nullptr, first,
                          last);
  }
}

// O of kRows rows from `row` on, over keys [begin, end) of the tile.
template <int kRows>
void AccumulateRows(const AttentionArgs& args, const PrefillPlan& plan, const PrefillScratch& s,
                    int64_t row, int64_t panel, int64_t begin, int64_t end) {
  const int64_t columns = std::min(args.v_head_dim() - panel * kPanel, kPanel);
  Product<kRows>(s.scores + row * kKeyTile + begin, kKeyTile,
                 s.v + (panel * kKeyTile + begin) * kPanel, end - begin,
                 s.acc + row * plan.acc_stride + panel * kPanel, plan.acc_stride, s.factor + row, 0,
                 (columns + kLanes - 1) / kLanes);
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

// A tile of keys that every row sees; keys is a multiple of kLanes.
HWY_NOINLINE void FullTile(const AttentionArgs& args, const PrefillPlan& plan, const RowTile& tile,
                           const PrefillScratch& s, int64_t keys) {
  const float scale = args.Scale();
  for (int64_t panel = 0; panel * kPanel < keys; ++panel) {
    const int64_t end = std::min((panel + 1) * kPanel, keys);
    for (int64_t r = 0; r < tile.padded_rows; r += kProductRows) {
      ScoreRows(args, plan, s, r, panel * kPanel, end);
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    s.next_max[r] = RowMax(s.scores + r * kKeyTile, keys, scale, s.max[r]);
  }
  UpdateMax(s, tile.rows);
  for (int64_t r = 0; r < tile.rows; ++r) {
    RowExp(s.scores + r * kKeyTile, keys, scale, s.max[r], s.factor[r], s.sum + r * kLanes);
  }
  for (int64_t panel = 0; panel * kPanel < args.v_head_dim(); ++panel) {
    for (int64_t r = 0; r < tile.padded_rows; r += kProductRows) {
      AccumulateRows<kProductRows>(args, plan, s, r, panel, 0, keys);
    }
  }
}

// A tile of which rows see different parts. [key, key + keys) are its keys.
HWY_NOINLINE void MaskedTile(const AttentionArgs& args, const PrefillPlan& plan,
                             const RowTile& tile, const PrefillScratch& s, int64_t key,
                             int64_t keys, bool v_finite) {
  const float scale = args.Scale();
  const MaskRule rule = args.Rule();
  const auto visible = [&](int64_t row) {
    const KeyRange range = rule.Range((tile.first + row) / plan.group);
    return KeyRange{std::clamp(range.begin - key, int64_t{0}, keys),
                    std::clamp(range.end - key, int64_t{0}, keys)};
  };
  // Both bounds grow with the row: a block sees from its first row's begin to its last row's end.
  const auto block = [&](int64_t row) {
    const int64_t last = std::min(row + kProductRows, tile.rows) - 1;
    return KeyRange{visible(row).begin, visible(last).end};
  };
  for (int64_t r = 0; r < tile.rows; r += kProductRows) {
    const KeyRange range = block(r);
    if (range.begin >= range.end) {
      for (int64_t i = r; i < std::min(r + kProductRows, tile.rows); ++i) s.next_max[i] = s.max[i];
      continue;
    }
    ScoreRows(args, plan, s, r, range.begin, range.end);
    const int64_t first = range.begin / kLanes * kLanes, last = RoundUpTo(range.end, kLanes);
    for (int64_t i = r; i < std::min(r + kProductRows, tile.rows); ++i) {
      const KeyRange mine = visible(i);
      float* scores = s.scores + i * kKeyTile;
      MaskRow(scores, first, mine.begin, std::max(mine.begin, mine.end), last, scale);
      s.next_max[i] = RowMax(scores + first, last - first, 1.0f, s.max[i]);
    }
  }
  UpdateMax(s, tile.rows);
  for (int64_t r = 0; r < tile.rows; r += kProductRows) {
    const KeyRange range = block(r);
    if (range.begin >= range.end) continue;
    const int64_t first = range.begin / kLanes * kLanes, last = RoundUpTo(range.end, kLanes);
    for (int64_t i = r; i < std::min(r + kProductRows, tile.rows); ++i) {
      RowExp(s.scores + i * kKeyTile + first, last - first, 1.0f, s.max[i], s.factor[i],
             s.sum + i * kLanes);
    }
    for (int64_t panel = 0; panel * kPanel < args.v_head_dim(); ++panel) {
      if (v_finite) {
        AccumulateRows<kProductRows>(args, plan, s, r, panel, range.begin, range.end);
        continue;
      }
      for (int64_t i = r; i < std::min(r + kProductRows, tile.rows); ++i) {
        const KeyRange mine = visible(i);
        AccumulateRows<1>(args, plan, s, i, panel, mine.begin, std::max(mine.begin, mine.end));
      }
    }
  }
}

void RunPrefillTask(const AttentionArgs& args, const PrefillPlan& plan, int64_t task, int worker) {
  const PrefillScratch s = OfWorker(plan, args, worker);
  RowTile tile;
  tile.head = task % plan.heads;
  tile.batch = tile.head / args.kv_heads();
  tile.kv_head = tile.head % args.kv_heads();
  tile.first = (plan.row_tiles - 1 - task / plan.heads) * plan.tile_rows;
  tile.rows = std::min(plan.tile_rows, plan.rows - tile.first);
  tile.padded_rows = RoundUpTo(tile.rows, kProductRows);
  DispatchFloat(args.q.dtype,
                [&]<typename T>() { LoadQueries<T>(args, tile, plan.q_stride, s.q); });
  std::fill_n(s.acc, tile.padded_rows * plan.acc_stride, 0.0f);
  std::fill_n(s.sum, plan.tile_rows * kLanes, 0.0f);
  std::fill_n(s.max, plan.tile_rows, kNegInf);
  std::fill_n(s.next_max, plan.tile_rows, kNegInf);
  std::fill_n(s.factor, plan.tile_rows, 1.0f);

  const MaskRule rule = args.Rule();
  const KeyRange first = rule.Range(tile.first / plan.group);
  const KeyRange last = rule.Range((tile.first + tile.rows - 1) / plan.group);
  const int64_t cached = args.cache_len();
  for (int64_t key = first.begin; key < last.end;) {
    int64_t end = std::min(last.end, key + kKeyTile);
    if (key < cached) end = std::min(end, cached);
    const bool v_finite = PackTile(args, tile, key, end, s);
    if (key >= last.begin && end <= first.end && (end - key) % kLanes == 0) {
      FullTile(args, plan, tile, s, end - key);
    } else {
      MaskedTile(args, plan, tile, s, key, end - key, v_finite);
    }
    key = end;
  }
  DispatchFloat(args.out.dtype, [&]<typename T>() { StoreRows<T>(args, plan, tile, s); });
}

absl::Status RunPrefill(const KernelContext& context, const AttentionArgs& args) {
  if (args.out.empty() && (!args.lse.present() || args.lse.empty())) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  const PrefillPlan plan = MakePrefillPlan(args, pool.size(), *context.workspace);
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  pool.ParallelFor(plan.heads * plan.row_tiles,
                   [&](int64_t task, int worker) { RunPrefillTask(args, plan, task, worker); });
  return absl::OkStatus();
}

int64_t PrefillWorkspaceBytes(const KernelContext& context, const AttentionArgs& args) {
  if (args.out.empty() && (!args.lse.present() || args.lse.empty())) return 0;
  Workspace counting = Workspace::Counting();
  MakePrefillPlan(args, CpuStream::Of(context).pool().size(), counting);
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
  TANDEM_RETURN_IF_ERROR(CheckPlain(args));
  return CheckContiguousRows(args);
}

}  // namespace

Kernel<AttentionArgs> AttentionPrefill(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"prefill_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>,
              N_AVX3::PrefillWorkspaceBytes, N_AVX3::RunPrefill};
    case Isa::kAvx2:
      return {"prefill_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, N_AVX2::PrefillWorkspaceBytes,
              N_AVX2::RunPrefill};
    default:
      return {"prefill_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>,
              TANDEM_N_SCALAR::PrefillWorkspaceBytes, TANDEM_N_SCALAR::RunPrefill};
  }
}

}  // namespace tandem::cpu

#endif  // HWY_ONCE
