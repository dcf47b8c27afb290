// Tiled matrix product for many rows, out of panels of b.
//
// Algorithm: a task is one block of rows times one panel of kPanel output features. The worker
// makes
//   the panel in its own scratch (f32, transposed, dequantised), multiplies all rows of the block
//   by it, and finishes the tile (scale, bias, activation, addend, rounding). The whole matrix is
//   never expanded: a worker holds K * 256 bytes of it, about as large as its L2 cache. bf16
//   weights may be left as they are (plan.pairs): panels are rearranged, rows rounded to bf16.
// Mapping: tasks are (batch, block, panel), panels innermost. Blocks have up to 512 rows, so that
//   expanding is a small share of the work; they are halved while there are fewer than kWantedTasks
//   tasks.
// Memory: b is read once per block of rows. a is read once per panel, from L2 or L3. Rows of a that
//   are not dense, and the last block if its row count is not a bucket's, are copied first.
// Range: every dtype, stride and batch. K = 0 gives tiles of zeros.
#include "cpu/matmul_tiled.h"

#include <algorithm>

#include "core/status.h"
#include "cpu/matmul_pairs.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kMaxBlock = 512;    // rows: at 512 expanding costs 2-5 % of multiplying
constexpr int64_t kMinBlock = 128;    // rows: below, expanding would cost over 10 %
constexpr int64_t kWantedTasks = 32;  // enough for 8 cores to finish within 25 % of each other
constexpr int64_t kCopyRows = 8;      // rows of a converted per task

int64_t Ceil(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

int64_t ElementBytes(const TiledPlan& plan) { return plan.pairs ? 2 : 4; }

int64_t PanelBytes(const TiledPlan& plan, int64_t k) {
  return kPanel * (plan.pairs ? PaddedPairDepth(k) : k) * ElementBytes(plan);
}

// The panel of output features n0.. of the batch at `offset`.
void MakePanel(const MatMulArgs& args, const TiledPlan& plan, const PanelOps& ops, int64_t offset,
               int64_t n0, void* panel) {
  const int64_t k = args.k(), columns = std::min(kPanel, args.n() - n0);
  if (plan.pairs) {
    ops.pair_panel(args.b, offset, n0, columns, k, static_cast<BF16*>(panel));
  } else if (const PairWeights* pairs = PairsOf(args)) {
    ops.widen_pairs(pairs->panel(n0), k, static_cast<float*>(panel));
  } else {
    ops.expand_panel(args.b, offset, n0, columns, k, static_cast<float*>(panel));
  }
}

}  // namespace

int64_t RowBucket(int64_t rows) {
  const int64_t unit = rows <= 64 ? 8 : 16;
  return Ceil(rows, unit) * unit;
}

TiledPlan::TiledPlan(const MatMulArgs& args, bool use_pairs) : pairs(use_pairs) {
  const int64_t m = args.m(), n = args.n();
  a_batches = args.a.rank() == 3 ? args.a.dim(0) : 1;
  panels = Ceil(n, kPanel);
  block = std::min(kMaxBlock, RowBucket(m));
  while (block > kMinBlock && args.batch() * Ceil(m, block) * panels < kWantedTasks) {
    block = RowBucket(Ceil(block, 2));
  }
  blocks = block == 0 ? 0 : Ceil(m, block);
  tail = blocks == 0 ? 0 : m - (blocks - 1) * block;
  tail_rows = RowBucket(tail);
  in_place = args.a.dtype == (pairs ? DType::kBF16 : DType::kF32) &&
             (args.a.stride(-1) == 1 || args.k() <= 1) && (args.a.stride(-2) == args.k() || m <= 1);
  first_copy = !in_place ? 0 : (tail == tail_rows ? padded_rows() : (blocks - 1) * block);
}

TiledScratch CarveTiled(Workspace& workspace, const MatMulArgs& args, const TiledPlan& plan,
                        int workers, bool expand, int64_t extra_bytes) {
  TiledScratch scratch;
  scratch.rows = workspace.Take<char>(plan.a_batches * (plan.padded_rows() - plan.first_copy) *
                                      args.k() * ElementBytes(plan));
  if (expand) scratch.panels = workspace.Take<char>(workers * PanelBytes(plan, args.k()));
  scratch.tiles = workspace.Take<float>(workers * plan.block * kPanel);
  scratch.extra = workspace.Take<char>(workers * extra_bytes);
  return scratch;
}

absl::Status RunTiled(const KernelContext& context, const MatMulArgs& args, const TiledPlan& plan,
                      const PanelOps& ops, const void* packed, int64_t extra_bytes,
                      MultiplyTile multiply) {
  if (args.out.empty()) return absl::OkStatus();
  const MatMulOperands operands(args);
  ThreadPool& pool = CpuStream::Of(context).pool();
  const int64_t m = args.m(), n = args.n(), k = args.k();
  const TiledScratch scratch =
      CarveTiled(*context.workspace, args, plan, pool.size(), packed == nullptr, extra_bytes);
  if (!context.workspace->ok()) return absl::InternalError("matmul: workspace too small");

  const int64_t copied = plan.padded_rows() - plan.first_copy;
  const int64_t strips = Ceil(copied, kCopyRows);
  pool.ParallelFor(plan.a_batches * strips, [&](int64_t task, int) {
    const int64_t z = task / strips, first = task % strips * kCopyRows;
    const int64_t rows = std::min(kCopyRows, copied - first);
    const int64_t from = plan.first_copy + first;
    const int64_t present = std::clamp<int64_t>(m - from, 0, rows);
    const int64_t row_bytes = k * ElementBytes(plan);
    char* to = scratch.rows + (z * copied + first) * row_bytes;
    if (plan.pairs) {
      ops.narrow_rows(args.a, operands.a_batch * z, from, present, k, reinterpret_cast<BF16*>(to));
    } else {
      ops.widen_rows(args.a, operands.a_batch * z, from, present, k, reinterpret_cast<float*>(to));
    }
    std::fill(to + present * row_bytes, to + rows * row_bytes, char{0});
  });

  pool.ParallelFor(plan.tasks(args), [&](int64_t task, int worker) {
    const int64_t n0 = task % plan.panels * kPanel;
    const int64_t m0 = task / plan.panels % plan.blocks * plan.block;
    const int64_t z = task / plan.panels / plan.blocks;
    const int64_t columns = std::min(kPanel, n - n0);
    const bool last = m0 + plan.block >= m;
    const int64_t rows = last ? plan.tail_rows : plan.block;
    float* tile = scratch.tiles + worker * plan.block * kPanel;
    if (k == 0) {
      std::fill(tile, tile + rows * kPanel, 0.0f);
    } else {
      const int64_t panel_bytes = PanelBytes(plan, k);
      const char* panel = static_cast<const char*>(packed);
      if (packed != nullptr) {
        panel += n0 / kPanel * panel_bytes;
      } else {
        char* made = scratch.panels + worker * panel_bytes;
        MakePanel(args, plan, ops, operands.b_batch * z, n0, made);
        panel = made;
      }
      const int64_t z_a = plan.a_batches > 1 ? z : 0;
      const void* a =
          m0 >= plan.first_copy
              ? scratch.rows + (z_a * copied + m0 - plan.first_copy) * k * ElementBytes(plan)
              : args.a.As<char>() + (operands.a_batch * z + m0 * k) * ElementBytes(plan);
      multiply(a, panel, rows, tile, worker, scratch.extra + worker * extra_bytes);
    }
    ops.finish_tile(args, operands, z, m0, last ? plan.tail : plan.block, n0, columns, tile);
  });
  return absl::OkStatus();
}

}  // namespace tandem::cpu
