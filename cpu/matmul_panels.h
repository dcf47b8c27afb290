// The pieces of a tiled matrix product that depend on the instruction set, as one table per Isa.
//
// A *panel* is kPanel columns of the f32 matrix B, [K][kPanel] row-major, columns beyond N zero; or
// of the bf16 matrix B in pairs along K, [K / 2][kPanel][2], K padded with zeros to kPairDepth. A
// *tile* is [rows][kPanel] f32 sums. All are contiguous.
#pragma once

#include <cstdint>

#include "core/ops/matmul.h"
#include "cpu/isa.h"
#include "cpu/matmul_epilogue.h"

namespace tandem::cpu {

// Output features per panel: 4 AVX-512 registers, which with 6 rows of A make the 24 accumulators
// that keep two FMA units busy.
inline constexpr int64_t kPanel = 64;

// A bf16 panel's K is a multiple of this (oneDNN's block, BA16a64b2a).
inline constexpr int64_t kPairDepth = 32;
inline int64_t PaddedPairDepth(int64_t k) { return (k + kPairDepth - 1) / kPairDepth * kPairDepth; }

struct PanelOps {
  // rows m0.. of a (batch offset in elements) to dense f32 rows of K.
  void (*widen_rows)(const TensorView& a, int64_t offset, int64_t m0, int64_t rows, int64_t k,
                     float* to);
  // The same as bf16, rounded to nearest even.
  void (*narrow_rows)(const TensorView& a, int64_t offset, int64_t m0, int64_t rows, int64_t k,
                      BF16* to);
  // One row as the sum of two bf16 numbers each, of 16 bits together: high rounded to nearest even,
  // low what that leaves, rounded (0 beside an infinity or NaN).
  void (*split_row)(const TensorView& a, int64_t offset, int64_t m, int64_t k, BF16* high,
                    BF16* low);
  // Panel of output features n0.. of b: widened or dequantised, transposed.
  void (*expand_panel)(const TensorView& b, int64_t offset, int64_t n0, int64_t columns, int64_t k,
                       float* panel);
  // The same for bf16 weights with contiguous rows, in pairs; nothing is converted.
  void (*pair_panel)(const TensorView& b, int64_t offset, int64_t n0, int64_t columns, int64_t k,
                     BF16* panel);
  // The same for f16 weights, each exactly the sum of two bf16 numbers: 8 bits of 11 in high, 3 in
  // low (0 beside an infinity or NaN).
  void (*split_panel)(const TensorView& b, int64_t offset, int64_t n0, int64_t columns, int64_t k,
                      BF16* high, BF16* low);
  // A panel of pairs as one of f32.
  void (*widen_pairs)(const BF16* pairs, int64_t k, float* panel);
  // tile = a * panel, a dense [rows][k].
  void (*multiply)(const float* a, const float* panel, int64_t rows, int64_t k, float* tile);
  // The epilogue: out[z, m0.., n0..] from a tile, which is overwritten.
  void (*finish_tile)(const MatMulArgs& args, const MatMulOperands& operands, int64_t z, int64_t m0,
                      int64_t rows, int64_t n0, int64_t columns, float* tile);
};

const PanelOps& PanelOpsFor(Isa isa);

}  // namespace tandem::cpu
