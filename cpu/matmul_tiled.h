// The tiled matrix product that the GEMM kernels share: how it is cut, what scratch it takes, and
// its driver. The kernels differ in where panels of b come from (expanded on the fly, or packed
// before) and in who multiplies a block of rows by a panel (oneDNN, or our own SIMD).
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "core/kernel.h"
#include "core/ops/matmul.h"
#include "core/workspace.h"
#include "cpu/matmul_panels.h"

namespace tandem::cpu {

// The partition, from the shape alone: the thread count must not show in the results.
struct TiledPlan {
  // pairs: b is bf16 and multiplied as such, by rows of a in bf16, instead of as f32.
  explicit TiledPlan(const MatMulArgs& args, bool pairs = false);

  int64_t a_batches;   // batches of a that exist in memory
  int64_t block;       // rows of a per task
  int64_t blocks;      // of rows; 0 if there is nothing to do
  int64_t tail;        // rows of the last block
  int64_t tail_rows;   // the same, rounded up to a bucket (further rows are zeros)
  int64_t panels;      // of kPanel output features
  bool pairs;          // bf16 rows and panels
  bool in_place;       // a is [M, K] dense and of that type: whole blocks are read where they lie
  int64_t first_copy;  // first row that is copied; rows from here to padded_rows() are scratch

  int64_t padded_rows() const { return blocks == 0 ? 0 : (blocks - 1) * block + tail_rows; }
  int64_t tasks(const MatMulArgs& args) const { return args.batch() * blocks * panels; }
};

// Row counts are rounded up to multiples of 8 (16 above 64), so that prompts of any length need few
// primitives.
int64_t RowBucket(int64_t rows);

struct TiledScratch {
  char* rows = nullptr;    // [a_batches][padded_rows - first_copy][K], f32 or bf16
  char* panels = nullptr;  // [workers][one panel], when b is expanded
  float* tiles = nullptr;  // [workers][block][kPanel]
  char* extra = nullptr;   // [workers][extra_bytes] for the multiplier
};
// expand: panels are made on the fly. extra_bytes: what the multiplier needs per worker (a multiple
// of 64).
TiledScratch CarveTiled(Workspace& workspace, const MatMulArgs& args, const TiledPlan& plan,
                        int workers, bool expand, int64_t extra_bytes);

// tile = rows x K times K x kPanel, a and panel f32, or bf16 if plan.pairs. `rows` is plan.block or
// plan.tail_rows.
using MultiplyTile = absl::FunctionRef<void(const void* a, const void* panel, int64_t rows,
                                            float* tile, int worker, char* extra)>;

// packed: all panels, one after the other (f32, or pairs if plan.pairs), or nullptr to make them
// out of args.b or of pairs that it was packed to (matmul_pairs.h).
absl::Status RunTiled(const KernelContext& context, const MatMulArgs& args, const TiledPlan& plan,
                      const PanelOps& ops, const void* packed, int64_t extra_bytes,
                      MultiplyTile multiply);

}  // namespace tandem::cpu
