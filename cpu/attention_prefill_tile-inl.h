// The pieces of prefill attention on one tile of keys: packing K and V, the matrix product, and the
// online softmax of a row. Compiled once per target; the algorithm is described in
// attention_prefill.cc.
//
// Packed layout, f32 whatever the storage type: panels of kPanel = 64 columns, [panel][row][64].
//   K transposed: a row is one of the D dimensions, columns are keys.
//   V:            a row is a key, columns are the Dv dimensions.
// So both products are C[6 rows][NV vectors] += A[6][depth] * panel[depth][NV vectors], with A
// broadcast from its row-major place: 24 accumulators on AVX-512, 12 on AVX2, and (NV + 6) loads
// per 6 * NV multiply-adds.
//
// Pairs: where everything is bf16 and the processor multiplies pairs of bf16 (vdpbf16ps: exact
// products, f32 sums, subnormal numbers as zero), rows of the panels come in pairs, two bf16 in the
// place of one f32, and so do the elements of A. Nothing else changes; depths are halved.
//
// Tiles (attention_prefill_amx-inl.h) take the same panels of pairs, in whole tiles: zeros make up
// 16 pairs of dimensions, and 32 keys.
#if defined(TANDEM_CPU_ATTENTION_PREFILL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_PREFILL_TILE_INL_H_
#undef TANDEM_CPU_ATTENTION_PREFILL_TILE_INL_H_
#else
#define TANDEM_CPU_ATTENTION_PREFILL_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/ops/online_softmax.h"
#include "cpu/attention_prefill_plan.h"
#include "cpu/attention_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

inline constexpr int64_t kPanel = kPrefillPanel;       // columns of a panel, floats
inline constexpr int kProductRows = kPrefillRowBlock;  // rows of the product's register block
inline constexpr int kProductVectors = kLanes == 16 ? 4 : 2;

// ---- Packing

// Stores rows[i][j] (i: key, j: dimension) as out[j * kPanel + i], for j < dims.
HWY_INLINE void TransposeStore(const VF (&rows)[kLanes], int64_t dims, float* HWY_RESTRICT out) {
  const DF d;
#if HWY_TARGET == HWY_SCALAR
  if (dims > 0) hn::StoreU(rows[0], d, out);
#else
  const hn::Repartition<double, DF> dd;
  // 4 x 4 within each 128-bit block b: quad[i][c] holds, in block b, dimension 4 b + c of the keys
  // 4 i .. 4 i + 3.
  VF quad[kLanes / 4][4];
  TANDEM_UNROLL
  for (int i = 0; i < kLanes / 4; ++i) {
    const VF r0 = rows[4 * i], r1 = rows[4 * i + 1], r2 = rows[4 * i + 2], r3 = rows[4 * i + 3];
    const auto lo01 = hn::BitCast(dd, hn::InterleaveLower(d, r0, r1));
    const auto hi01 = hn::BitCast(dd, hn::InterleaveUpper(d, r0, r1));
    const auto lo23 = hn::BitCast(dd, hn::InterleaveLower(d, r2, r3));
    const auto hi23 = hn::BitCast(dd, hn::InterleaveUpper(d, r2, r3));
    quad[i][0] = hn::BitCast(d, hn::InterleaveLower(dd, lo01, lo23));
    quad[i][1] = hn::BitCast(d, hn::InterleaveUpper(dd, lo01, lo23));
    quad[i][2] = hn::BitCast(d, hn::InterleaveLower(dd, hi01, hi23));
    quad[i][3] = hn::BitCast(d, hn::InterleaveUpper(dd, hi01, hi23));
  }
  VF columns[kLanes];  // then blocks change places between the quads
  TANDEM_UNROLL
  for (int c = 0; c < 4; ++c) {
#if HWY_TARGET == HWY_AVX3
    const VF v0 = quad[0][c], v1 = quad[1][c], v2 = quad[2][c], v3 = quad[3][c];
    const VF even01 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(v1), v0);
    const VF even23 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(v3), v2);
    const VF odd01 = hn::OddEvenBlocks(v1, hn::SwapAdjacentBlocks(v0));
    const VF odd23 = hn::OddEvenBlocks(v3, hn::SwapAdjacentBlocks(v2));
    columns[c] = hn::ConcatLowerLower(d, even23, even01);
    columns[4 + c] = hn::ConcatLowerLower(d, odd23, odd01);
    columns[8 + c] = hn::ConcatUpperUpper(d, even23, even01);
    columns[12 + c] = hn::ConcatUpperUpper(d, odd23, odd01);
#elif HWY_TARGET == HWY_AVX2
    columns[c] = hn::ConcatLowerLower(d, quad[1][c], quad[0][c]);
    columns[4 + c] = hn::ConcatUpperUpper(d, quad[1][c], quad[0][c]);
#else
    columns[c] = quad[0][c];
#endif
  }
  if (dims >= kLanes) {
    TANDEM_UNROLL
    for (int j = 0; j < kLanes; ++j) hn::StoreU(columns[j], d, out + j * kPanel);
  } else {
    for (int j = 0; j < dims; ++j) hn::StoreU(columns[j], d, out + j * kPanel);
  }
#endif
}

// Rows of K and V of the keys of a tile, wherever they lie. Scales: of an i8 cache.
struct KeyRows {
  const void* k[kPrefillKeyTile];
  const void* v[kPrefillKeyTile];
  float k_scale[kPrefillKeyTile];
  float v_scale[kPrefillKeyTile];
};

// Vector number i of a row of n elements; an i8 row times its scale.
template <typename T>
HWY_INLINE VF LoadCachePart(const T* HWY_RESTRICT row, float scale, int64_t i, int64_t n) {
  if constexpr (std::is_same_v<T, int8_t>) {
    const DF d;
    const hn::Rebind<int8_t, DF> d8;
    const hn::RebindToSigned<DF> d32;
    const int64_t left = n - i * kLanes;
    const int8_t* p = row + i * kLanes;
    HWY_ALIGN int8_t padded[kLanes] = {};
    if (left < kLanes) {
      std::memcpy(padded, p, static_cast<size_t>(left));
      p = padded;
    }
    return hn::Mul(hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(d8, p))), hn::Set(d, scale));
  } else {
    return LoadF32Part(row, i, n);
  }
}

// K of keys 0..keys-1, transposed. Columns up to the next whole vector are zero.
template <typename T>
HWY_NOINLINE void PackKeys(const KeyRows& source, int64_t keys, int64_t head_dim,
                           float* HWY_RESTRICT out) {
  const DF d;
  for (int64_t key = 0; key < keys; key += kLanes) {
    float* HWY_RESTRICT panel = out + key / kPanel * kPanel * head_dim + key % kPanel;
    const int64_t count = std::min<int64_t>(kLanes, keys - key);
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      VF rows[kLanes];
      if (count == kLanes) {
        TANDEM_UNROLL
        for (int j = 0; j < kLanes; ++j) {
          rows[j] = LoadCachePart(static_cast<const T*>(source.k[key + j]), source.k_scale[key + j],
                                  i / kLanes, head_dim);
        }
      } else {
        for (int j = 0; j < kLanes; ++j) {
          rows[j] = j < count ? LoadCachePart(static_cast<const T*>(source.k[key + j]),
                                              source.k_scale[key + j], i / kLanes, head_dim)
                              : hn::Zero(d);
        }
      }
      TransposeStore(rows, head_dim - i, panel + i * kPanel);
    }
  }
}

// V of keys 0..keys-1. Returns whether every value is finite.
template <typename T>
HWY_NOINLINE bool PackValues(const KeyRows& source, int64_t keys, int64_t v_head_dim,
                             float* HWY_RESTRICT out) {
  const DF d;
  const VF zero = hn::Zero(d);
  VF check = zero;  // turns NaN when an infinity or a NaN is multiplied by zero
  for (int64_t key = 0; key < keys; ++key) {
    const T* row = static_cast<const T*>(source.v[key]);
    VF row_check = zero;
    for (int64_t i = 0; i < v_head_dim; i += kLanes) {
      const VF x = LoadCachePart(row, source.v_scale[key], i / kLanes, v_head_dim);
      hn::StoreU(x, d, out + (i / kPanel * kPrefillKeyTile + key) * kPanel + i % kPanel);
      row_check = hn::MulAdd(x, zero, row_check);
    }
    check = hn::Add(check, row_check);
  }
  return hn::AllTrue(d, hn::Eq(check, zero));
}

// Pairs of bf16, as bits in the place of one f32.

// Vector number i of a row of n bf16, two per lane. Behind the last one, zeros.
HWY_INLINE VF LoadPairs(const BF16* HWY_RESTRICT row, int64_t i, int64_t n) {
  const DF d;
  const BF16* p = row + i * 2 * kLanes;
  const int64_t left = n - i * 2 * kLanes;
  if (left >= 2 * kLanes) return hn::LoadU(d, reinterpret_cast<const float*>(p));
  HWY_ALIGN float padded[kLanes] = {};
  std::memcpy(padded, p, static_cast<size_t>(left) * sizeof(BF16));
  return hn::Load(d, padded);
}

// As PackKeys; a row of the result holds dimensions 2 i and 2 i + 1, `depth` rows in all. Columns
// up to the next multiple of kGrain are zero.
template <int kGrain>
HWY_NOINLINE void PackKeyPairs(const KeyRows& source, int64_t keys, int64_t head_dim, int64_t depth,
                               float* HWY_RESTRICT out) {
  const DF d;
  for (int64_t key = 0; key < RoundUpTo(keys, kGrain); key += kLanes) {
    float* HWY_RESTRICT panel = out + key / kPanel * kPanel * depth + key % kPanel;
    for (int64_t i = 0; i < depth; i += kLanes) {
      VF rows[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        rows[j] = key + j < keys
                      ? LoadPairs(static_cast<const BF16*>(source.k[key + j]), i / kLanes, head_dim)
                      : hn::Zero(d);
      }
      TransposeStore(rows, depth - i, panel + i * kPanel);
    }
  }
}

// As PackValues; a row of the result holds keys 2 i and 2 i + 1. Keys and columns up to multiples
// of kGrain are zero.
template <int kGrain>
HWY_NOINLINE bool PackValuePairs(const KeyRows& source, int64_t keys, int64_t v_head_dim,
                                 float* HWY_RESTRICT out) {
  const DF d;
  const VF zero = hn::Zero(d);
  const int64_t whole_keys = RoundUpTo(keys, kGrain), columns = RoundUpTo(v_head_dim, kGrain);
  VF check = zero;  // as in PackValues
  for (int64_t key = 0; key < whole_keys; key += 2) {
    const BF16* even = key < keys ? static_cast<const BF16*>(source.v[key]) : nullptr;
    const BF16* odd = key + 1 < keys ? static_cast<const BF16*>(source.v[key + 1]) : nullptr;
    const auto load = [&](const BF16* row, int64_t i) HWY_ATTR {
      return row != nullptr && i < v_head_dim ? LoadF32Part(row, i / kLanes, v_head_dim) : zero;
    };
    for (int64_t i = 0; i < columns; i += kLanes) {
      const hn::RebindToUnsigned<DF> du;
      const VF low = load(even, i), high = load(odd, i);
      const VF pair =
          hn::BitCast(d, hn::Or(hn::ShiftRight<16>(hn::BitCast(du, low)), hn::BitCast(du, high)));
      hn::StoreU(pair, d,
                 out + (i / kPanel * (kPrefillKeyTile / 2) + key / 2) * kPanel + i % kPanel);
      check = hn::MulAdd(low, zero, hn::MulAdd(high, zero, check));
    }
  }
  return hn::AllTrue(d, hn::Eq(check, zero));
}

// ---- Product

// c = a * b + c. kPairs: each lane is a pair of bf16, whose two products are added to c.
template <bool kPairs>
HWY_INLINE VF MulAddLanes(VF a, VF b, VF c) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (kPairs) {
    // Written out: Highway has no target with this instruction and without others that the
    // processor may lack; supports() checks for it.
    asm("vdpbf16ps %2, %1, %0" : "+v"(c.raw) : "v"(b.raw), "v"(a.raw));
    return c;
  }
#else
  static_assert(!kPairs);
#endif
  return hn::MulAdd(a, b, c);
}

// c[r][0 .. NV vectors) = factor[r] * c[r] + scale * sum over k < depth of a[r][k] * b[k], for
// kRows rows. Without factor, c is not read. scale is 1 but for pairs without factor.
template <int kRows, int NV, bool kPairs>
HWY_INLINE void ProductBlock(const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b,
                             int64_t depth, float* HWY_RESTRICT c, int64_t ldc,
                             const float* HWY_RESTRICT factor, float scale) {
  const DF d;
  VF acc[kRows * NV];
  TANDEM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) {
      acc[r * NV + n] = factor == nullptr ? hn::Zero(d)
                                          : hn::Mul(hn::Set(d, factor[r]),
                                                    hn::LoadU(d, c + r * ldc + n * kLanes));
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    VF bv[NV];
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) bv[n] = hn::LoadU(d, b + k * kPanel + n * kLanes);
    TANDEM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VF av = hn::Set(d, a[r * lda + k]);
      TANDEM_UNROLL
      for (int n = 0; n < NV; ++n) {
        acc[r * NV + n] = MulAddLanes<kPairs>(av, bv[n], acc[r * NV + n]);
      }
    }
  }
  if (kPairs && factor == nullptr) {
    TANDEM_UNROLL
    for (int i = 0; i < kRows * NV; ++i) acc[i] = hn::Mul(acc[i], hn::Set(d, scale));
  }
  TANDEM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) hn::StoreU(acc[r * NV + n], d, c + r * ldc + n * kLanes);
  }
}

// The same for vectors [begin, end) of one panel.
template <int kRows, bool kPairs>
HWY_NOINLINE void Product(const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b,
                          int64_t depth, float* HWY_RESTRICT c, int64_t ldc,
                          const float* HWY_RESTRICT factor, float scale, int64_t begin,
                          int64_t end) {
  constexpr int NV = kProductVectors;
  const auto block = [&]<int kVectors>(int64_t n) HWY_ATTR {
    ProductBlock<kRows, kVectors, kPairs>(a, lda, b + n * kLanes, depth, c + n * kLanes, ldc,
                                          factor, scale);
  };
  int64_t n = begin;
  for (; n + NV <= end; n += NV) block.template operator()<NV>(n);
  if constexpr (NV > 2) {
    if (end - n == 3) return block.template operator()<3>(n);
    if (end - n == 2) return block.template operator()<2>(n);
  }
  if (n < end) block.template operator()<1>(n);
}

// ---- Softmax

// max(maximum, max over the scores); whole vectors.
HWY_INLINE float RowMax(const float* HWY_RESTRICT scores, int64_t count, float maximum) {
  const DF d;
  VF max = hn::Set(d, maximum);
  for (int64_t i = 0; i < count; i += kLanes) max = hn::Max(max, hn::Load(d, scores + i));
  return hn::GetLane(hn::MaxOfLanes(d, max));
}

// scores = exp(scale * scores - max); sum (kLanes partial sums) = sum * factor + the new weights.
// kPairs: the weights of scores [first, last) are written as bf16 numbers first .. last - 1 from
// `scores` on, the sum is of the unrounded ones.
template <bool kPairs>
HWY_INLINE void RowExp(float* HWY_RESTRICT scores, int64_t first, int64_t last, float scale,
                       float max, float factor, float* HWY_RESTRICT sum) {
  const DF d;
  const VF vmax = hn::Set(d, max == kNegInf ? 0.0f : max), vscale = hn::Set(d, scale);
  VF total = hn::Mul(hn::Load(d, sum), hn::Set(d, factor));
  for (int64_t i = first; i < last; i += kLanes) {
    const VF p = ExpNonPositive(hn::MulSub(hn::Load(d, scores + i), vscale, vmax));
#if HWY_TARGET == HWY_AVX3
    if constexpr (kPairs) {  // never ahead of the scores still to be read
      const hn::Half<DF> dh;
      hn::Vec<hn::Half<DF>> rounded;
      asm("vcvtneps2bf16 %1, %0" : "=v"(rounded.raw) : "v"(p.raw));
      hn::StoreU(rounded, dh, scores + i / 2);
    }
#endif
    if constexpr (!kPairs) hn::Store(p, d, scores + i);
    total = hn::Add(total, p);
  }
  hn::Store(total, d, sum);
}

// Scores of [first, last), whole vectors, outside [begin, end) become -inf: not visible.
HWY_INLINE void MaskRow(float* HWY_RESTRICT scores, int64_t first, int64_t begin, int64_t end,
                        int64_t last) {
  const DF d;
  const VF neg_inf = hn::Set(d, kNegInf);
  for (int64_t i = first; i < last; i += kLanes) {
    if (i >= begin && i + kLanes <= end) continue;
    const auto before =
        hn::FirstN(d, static_cast<size_t>(std::clamp<int64_t>(begin - i, 0, kLanes)));
    const auto until = hn::FirstN(d, static_cast<size_t>(std::clamp<int64_t>(end - i, 0, kLanes)));
    hn::Store(hn::IfThenElse(hn::AndNot(before, until), hn::Load(d, scores + i), neg_inf), d,
              scores + i);
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
