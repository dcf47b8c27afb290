// Both products of prefill attention by Intel AMX: 32 query rows x 32 columns at a time, in four
// tiles of sums. Compiled for AVX-512 only; the algorithm is described in attention_prefill.cc, the
// tile operations in amx.h.
//
// Operands are those of bf16 pairs (attention_prefill_tile-inl.h): a row of q or of weights is a
// row of tile A, and a panel of pairs, of which a tile takes 16 columns, is tile B.
//
// Per step, of 32 x 32 x 32 products, four tiles of operands are loaded (32 cycles) and four tile
// products computed (64 cycles). Sums stay in tiles over the whole depth, D or the keys of a tile.
//
// Exponentials run beside the tile products, but both want the same port: measured on Emerald
// Rapids, a step takes 24 ns, the exponentials of one row of 128 scores 22 to 25, both in turns
// 42.
#if defined(TANDEM_CPU_ATTENTION_PREFILL_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_PREFILL_AMX_INL_H_
#undef TANDEM_CPU_ATTENTION_PREFILL_AMX_INL_H_
#else
#define TANDEM_CPU_ATTENTION_PREFILL_AMX_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "cpu/amx.h"
#include "cpu/attention_prefill_plan.h"
#include "cpu/attention_prefill_rows-inl.h"
#include "cpu/attention_prefill_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3 && TANDEM_HAVE_AMX

inline constexpr int64_t kTileColumns = 32;  // of a block, two tiles of 16
inline constexpr int64_t kTileDepth = 16;    // pairs of a step

// c[32][32] = a * b, or += if kAdd. a: [32] rows of `steps` * 16 pairs, b: as many rows of a panel.
// Calls beside(), which does some vector work, in every step.
template <bool kAdd, class Beside>
HWY_INLINE void TileProduct(const float* a, int64_t lda, const float* b, int64_t steps, float* c,
                            int64_t ldc, const Beside& beside) {
  constexpr int64_t kFloat = sizeof(float), kPanelBytes = kPanel * kFloat;
  const int64_t a_bytes = lda * kFloat, c_bytes = ldc * kFloat;
  if constexpr (kAdd) {
    TileLoad<0>(c, c_bytes);
    TileLoad<1>(c + kTileRows, c_bytes);
    TileLoad<2>(c + kTileRows * ldc, c_bytes);
    TileLoad<3>(c + kTileRows * ldc + kTileRows, c_bytes);
  } else {
    TileZero<0>();
    TileZero<1>();
    TileZero<2>();
    TileZero<3>();
  }
  for (int64_t step = 0; step < steps; ++step) {
    TileLoad<4>(a, a_bytes);
    TileLoad<6>(b, kPanelBytes);
    TileLoad<7>(b + kTileRows, kPanelBytes);
    TileLoad<5>(a + kTileRows * lda, a_bytes);
    TileDotBF16<0, 4, 6>();
    TileDotBF16<1, 4, 7>();
    TileDotBF16<2, 5, 6>();
    TileDotBF16<3, 5, 7>();
    beside();
    a += kTileDepth;
    b += kTileDepth * kPanel;
  }
  TileStore<0>(c, c_bytes);
  TileStore<1>(c + kTileRows, c_bytes);
  TileStore<2>(c + kTileRows * ldc, c_bytes);
  TileStore<3>(c + kTileRows * ldc + kTileRows, c_bytes);
}

// S, not scaled, of 32 rows from `row` on, for keys [first, last) of the tile, whole blocks.
template <class Beside>
HWY_INLINE void ScoreTiles(const PrefillTask& task, const Panels& panels, int64_t row,
                           int64_t first, int64_t last, const Beside& beside) {
  const PrefillPlan& plan = task.plan;
  for (int64_t key = first; key < last; key += kTileColumns) {
    TileProduct<false>(task.s.q + row * plan.q_stride, plan.q_stride,
                       panels.k + key / kPanel * kPanel * plan.k_depth + key % kPanel,
                       plan.k_depth / kTileDepth, task.s.scores + row * kPrefillKeyTile + key,
                       kPrefillKeyTile, beside);
  }
}

// O of 32 rows from `row` on, multiplied by their factors, plus keys [first, last) of the tile.
// Without factor, O holds nothing yet.
template <class Beside>
HWY_INLINE void AccumulateTiles(const PrefillTask& task, const Panels& panels, int64_t row,
                                int64_t first, int64_t last, const float* HWY_RESTRICT factor,
                                const Beside& beside) {
  const DF d;
  const PrefillPlan& plan = task.plan;
  const int64_t v_head_dim = task.args.v_head_dim();
  constexpr int64_t kRows = PrefillBlockRows(PrefillProducts::kTiles);
  float* acc = task.s.acc + row * plan.acc_stride;
  for (int64_t r = 0; r < kRows && factor != nullptr; ++r) {
    if (factor[r] == 1.0f) continue;  // most rows, once their largest score has been seen
    const VF f = hn::Set(d, factor[r]);
    for (int64_t i = 0; i < v_head_dim; i += kLanes) {
      float* part = acc + r * plan.acc_stride + i;
      hn::Store(hn::Mul(hn::Load(d, part), f), d, part);
    }
  }
  const float* weights = task.s.scores + row * kPrefillKeyTile + first / 2;
  const int64_t steps = (last - first) / (2 * kTileDepth);
  for (int64_t column = 0; column < v_head_dim; column += kTileColumns) {
    const float* v =
        panels.v + (column / kPanel * plan.v_depth + first / 2) * kPanel + column % kPanel;
    if (factor == nullptr) {
      TileProduct<false>(weights, kPrefillKeyTile, v, steps, acc + column, plan.acc_stride, beside);
    } else {
      TileProduct<true>(weights, kPrefillKeyTile, v, steps, acc + column, plan.acc_stride, beside);
    }
  }
}

#endif

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
