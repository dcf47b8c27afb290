// Rotation of rows (core/ops/rope.h), shared by rope and kv_append. Included per target, after
// hwy/highway.h (see simd_targets.h).
//
// Cosines and sines of every (position, pair) are computed once per call, in f64, and rounded into
// a table that all heads share; then each row is rotated in one pass. For the interleaved pairing
// the table repeats every cosine and alternates the sign of the sine, so that
//   out = x * cosines + (x with neighbours swapped) * sines
// needs no de-interleaving.

#if defined(TANDEM_CPU_ROPE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ROPE_ROWS_INL_H_
#undef TANDEM_CPU_ROPE_ROWS_INL_H_
#else
#define TANDEM_CPU_ROPE_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <numbers>

#include "cpu/float_vectors-inl.h"
#include "cpu/rope_table.h"
#include "cpu/row_tasks.h"
#include "cpu/thread_pool.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// cos and sin of position * inv_freq[i], `pairs` of each.
inline void AnglesOf(double position, const float* inv_freq, int64_t pairs, double* cosines,
                     double* sines) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, hn::ScalableTag<double>> df;
  constexpr int64_t kDoubles = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<double>()));
  // 2 pi = high + low: with fused multiply-add the reduced angle is exact to the last place.
  const auto high = hn::Set(d, 2.0 * std::numbers::pi);
  const auto low = hn::Set(d, 2.4492935982947064e-16);
  for (int64_t i = 0; i < pairs; i += kDoubles) {
    HWY_ALIGN float frequencies[kDoubles] = {};
    for (int64_t j = 0; j < kDoubles && i + j < pairs; ++j) frequencies[j] = inv_freq[i + j];
    const auto angle = hn::Mul(hn::Set(d, position), hn::PromoteTo(d, hn::Load(df, frequencies)));
    const auto turns = hn::Round(hn::Mul(angle, hn::Set(d, 0.5 * std::numbers::inv_pi)));
    const auto reduced = hn::NegMulAdd(turns, low, hn::NegMulAdd(turns, high, angle));
    // The scratch rows are padded to whole vectors.
    hn::StoreU(hn::Cos(d, reduced), d, cosines + i);
    hn::StoreU(hn::Sin(d, reduced), d, sines + i);
  }
}

template <typename X, typename Out>
void RotateHalf(const X* x, const float* cosines, const float* sines, Out* out, int64_t pairs) {
  int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const FloatVec a = LoadFloats(x + i), b = LoadFloats(x + pairs + i);
    const FloatVec c = LoadFloats(cosines + i), s = LoadFloats(sines + i);
    StoreFloats(hn::MulSub(a, c, hn::Mul(b, s)), out + i);
    StoreFloats(hn::MulAdd(a, s, hn::Mul(b, c)), out + pairs + i);
  }
  if (i < pairs) {
    const int64_t count = pairs - i;
    const FloatVec a = LoadTail(x + i, count), b = LoadTail(x + pairs + i, count);
    const FloatVec c = LoadTail(cosines + i, count), s = LoadTail(sines + i, count);
    StoreTail(hn::MulSub(a, c, hn::Mul(b, s)), out + i, count);
    StoreTail(hn::MulAdd(a, s, hn::Mul(b, c)), out + pairs + i, count);
  }
}

template <typename X, typename Out>
void RotateInterleaved(const X* x, const float* cosines, const float* sines, Out* out,
                       int64_t pairs) {
  int64_t n = 0;
  if constexpr (kLanes > 1) {
    const FloatTag d;
    for (int64_t count; n < 2 * pairs; n += count) {
      count = std::min(kLanes, 2 * pairs - n);
      const bool whole = count == kLanes;
      const FloatVec v = whole ? LoadFloats(x + n) : LoadTail(x + n, count);
      const FloatVec c = whole ? LoadFloats(cosines + n) : LoadTail(cosines + n, count);
      const FloatVec s = whole ? LoadFloats(sines + n) : LoadTail(sines + n, count);
      const FloatVec rotated = hn::MulAdd(v, c, hn::Mul(hn::Reverse2(d, v), s));
      if (whole) {
        StoreFloats(rotated, out + n);
      } else {
        StoreTail(rotated, out + n, count);
      }
    }
  } else {
    for (; n < 2 * pairs; n += 2) {
      const float a = ToFloat(x[n]), b = ToFloat(x[n + 1]);
      out[n] = FromFloat<Out>(a * cosines[n] + b * sines[n]);
      out[n + 1] = FromFloat<Out>(b * cosines[n + 1] + a * sines[n + 1]);
    }
  }
}

// inv_freq must be contiguous.
inline void FillRopeTable(ThreadPool& pool, const RopeRotation& rotation, const RopeTable& table) {
  const bool half = rotation.pairing == RopePairing::kHalf;
  const int64_t pairs = rotation.inv_freq.dim(0);
  ParallelRows(pool, table.rows, table.columns, [&](int64_t begin, int64_t end, int worker) {
    double* exact_cosines = table.exact + worker * 2 * table.padded_pairs;
    double* exact_sines = exact_cosines + table.padded_pairs;
    for (int64_t t = begin; t < end; ++t) {
      AnglesOf(RopePosition(rotation, t), rotation.inv_freq.As<float>(), pairs, exact_cosines,
               exact_sines);
      float* cosines = table.cosines + t * table.columns;
      float* sines = table.sines + t * table.columns;
      for (int64_t i = 0; i < pairs; ++i) {
        const float cosine = static_cast<float>(rotation.magnitude * exact_cosines[i]);
        const float sine = static_cast<float>(rotation.magnitude * exact_sines[i]);
        if (half) {
          cosines[i] = cosine;
          sines[i] = sine;
        } else {
          cosines[2 * i] = cosines[2 * i + 1] = cosine;
          sines[2 * i] = -sine;
          sines[2 * i + 1] = sine;
        }
      }
    }
  });
}

// One row of `columns` elements by row `entry` of the table; out may be x.
template <typename X, typename Out>
void RotateRow(const RopeRotation& rotation, const RopeTable& table, int64_t entry, const X* x,
               Out* out, int64_t columns) {
  const int64_t pairs = rotation.inv_freq.dim(0);
  const float* cosines = table.cosines + entry * table.columns;
  const float* sines = table.sines + entry * table.columns;
  if (rotation.pairing == RopePairing::kHalf) {
    RotateHalf(x, cosines, sines, out, pairs);
  } else {
    RotateInterleaved(x, cosines, sines, out, pairs);
  }
  ConvertSpan(x + 2 * pairs, out + 2 * pairs, columns - 2 * pairs);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_ROPE_ROWS_INL_H_
