// Decode attention where q, K and V are bf16, with dot products of bf16 pairs (vdpbf16ps: two exact
// products and their f32 sum in each lane, at the rate of multiply-adds), in place of widening to
// f32.
//
//   q        bf16 as it came: the scale goes to the scores
//   scores   as in attention_decode_tile-inl.h; a lane holds two neighbouring elements of D
//   values   a lane holds the same column of two neighbouring keys, interleaved when loaded
//   weights  rounded to bf16; the sum that normalises them is that of the unrounded ones
//
// Everything else is common to all caches. AVX-512 only.
#if defined(TANDEM_CPU_ATTENTION_DECODE_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_PAIRS_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_PAIRS_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_PAIRS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "cpu/attention_decode_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3

// 16 f32 as bf16, to nearest even.
HWY_INLINE __m256i ToBf16(VF x) {
  __m256i bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(x.raw));
  return bits;
}

// Rows of f32 [RT][stride] become rows of pairs, in place: half as many lanes, then zeros up to
// whole vectors. They hold zeros from head_dim up to a whole vector.
template <int RT>
HWY_NOINLINE void RowsToPairs(float* rows, int64_t stride, int64_t head_dim) {
  const int64_t lanes = (head_dim + 1) / 2;
  for (int r = 0; r < RT; ++r) {
    float* row = rows + r * stride;
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const __m256i pairs = ToBf16(hn::Load(DF(), row + i));
      std::memcpy(row + i / 2, &pairs, sizeof(pairs));
    }
    // The last conversion wrote whole halves of vectors.
    const int64_t written = (lanes + kLanes / 2 - 1) / (kLanes / 2) * (kLanes / 2);
    const int64_t end = (lanes + kLanes - 1) / kLanes * kLanes;
    std::fill(row + written, row + end, 0.0f);
  }
}

// pairs[keys / 2][RT]: weights [key][RT] of two keys each, as bf16. Weights are 0 up to a whole
// vector behind the last key.
template <int RT>
HWY_NOINLINE void WeightsToPairs(const float* HWY_RESTRICT weights, int64_t keys,
                                 uint32_t* HWY_RESTRICT pairs) {
  alignas(32) uint16_t order[16];
  for (int i = 0; i < 16; ++i) {
    order[i] = static_cast<uint16_t>((i / (2 * RT) * 2 + i % 2) * RT + i / 2 % RT);
  }
  const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(order));
  for (int64_t i = 0; i < keys * RT; i += kLanes) {
    const __m256i x = _mm256_permutexvar_epi16(index, ToBf16(hn::Load(DF(), weights + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + i / 2), x);
  }
}

// Columns [0, 32) of two rows of V, as lanes of pairs: 0 .. 15 and 16 .. 31.
HWY_INLINE void InterleaveRows(const BF16* HWY_RESTRICT a, const BF16* HWY_RESTRICT b, VF& low,
                               VF& high) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low_index = _mm512_load_si512(kLow);
  const __m512i high_index = _mm512_add_epi16(low_index, _mm512_set1_epi16(16));
  const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
  low = InRegister(VF{_mm512_castsi512_ps(_mm512_permutex2var_epi16(x, low_index, y))});
  high = InRegister(VF{_mm512_castsi512_ps(_mm512_permutex2var_epi16(x, high_index, y))});
}

// Columns [0, n) of two rows of V, n <= 16, then zeros.
HWY_INLINE VF InterleaveRowsTail(const BF16* HWY_RESTRICT a, const BF16* HWY_RESTRICT b, int n) {
  HWY_ALIGN BF16 x[2 * kLanes] = {}, y[2 * kLanes] = {};
  std::memcpy(x, a, static_cast<size_t>(n) * sizeof(BF16));
  std::memcpy(y, b, static_cast<size_t>(n) * sizeof(BF16));
  VF low, high;
  InterleaveRows(x, y, low, high);
  return low;
}

// As ValuesBlock, for pairs of keys. NV is 1 (of `tail` columns) or even.
template <int RT, int NV>
HWY_NOINLINE void ValuesBlockPairs(const BF16* const* HWY_RESTRICT v, int64_t column, int64_t keys,
                                   const uint32_t* HWY_RESTRICT pairs,
                                   const float* HWY_RESTRICT factor, float* HWY_RESTRICT acc,
                                   int64_t acc_stride, int tail, Fetcher<BF16>& ahead) {
  static_assert(NV == 1 || NV % 2 == 0);
  const DF d;
  VF a[RT][NV];
  TANDEM_UNROLL
  for (int r = 0; r < RT; ++r) {
    const VF f = hn::Set(d, factor[r]);
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) {
      a[r][n] = hn::Mul(f, hn::Load(d, acc + r * acc_stride + n * kLanes));
    }
  }
  Fetcher<BF16> fetch = ahead;
  for (int64_t key = 0; key < keys; key += 2, pairs += RT) {
    fetch.template Fetch<2 * NV * kLanes * 2>(key / 2);
    const BF16* HWY_RESTRICT first = v[key] + column;
    const BF16* HWY_RESTRICT second = v[key + 1] + column;
    VF values[NV];
    if constexpr (NV == 1) {
      values[0] = InRegister(InterleaveRowsTail(first, second, tail));
    } else {
      TANDEM_UNROLL
      for (int n = 0; n < NV; n += 2) {
        InterleaveRows(first + n * kLanes, second + n * kLanes, values[n], values[n + 1]);
      }
    }
    TANDEM_UNROLL
    for (int r = 0; r < RT; ++r) {
      float pair;
      std::memcpy(&pair, pairs + r, sizeof(pair));
      const VF w = InRegister(hn::Set(d, pair));
      TANDEM_UNROLL
      for (int n = 0; n < NV; ++n) a[r][n] = MulAddLanes<true>(w, values[n], a[r][n]);
    }
  }
  ahead = fetch;
  TANDEM_UNROLL
  for (int r = 0; r < RT; ++r) {
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) hn::Store(a[r][n], d, acc + r * acc_stride + n * kLanes);
  }
}

template <int RT, int NV>
HWY_INLINE void ValuesColumnsPairs(const BF16* const* HWY_RESTRICT v, int64_t column, int64_t keys,
                                   int64_t v_head_dim, const uint32_t* HWY_RESTRICT pairs,
                                   const float* HWY_RESTRICT factor, float* HWY_RESTRICT acc,
                                   int64_t acc_stride, Fetcher<BF16>& ahead) {
  constexpr int kColumns = NV * kLanes;
  for (; column + kColumns <= v_head_dim; column += kColumns) {
    ValuesBlockPairs<RT, NV>(v, column, keys, pairs, factor, acc + column, acc_stride, kLanes,
                             ahead);
  }
  if (column >= v_head_dim) return;
  if constexpr (NV > 1) {
    ValuesColumnsPairs<RT, NV / 2>(v, column, keys, v_head_dim, pairs, factor, acc, acc_stride,
                                   ahead);
  } else {
    ValuesBlockPairs<RT, 1>(v, column, keys, pairs, factor, acc + column, acc_stride,
                            static_cast<int>(v_head_dim - column), ahead);
  }
}

// As Values. v has a row behind the last key if their number is odd.
template <int RT>
HWY_NOINLINE void ValuesPairs(const BF16* const* HWY_RESTRICT v, int64_t keys, int64_t v_head_dim,
                              const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factor,
                              float* HWY_RESTRICT acc, int64_t acc_stride, Fetcher<BF16>& ahead) {
  HWY_ALIGN uint32_t pairs[kTileKeys / 2 * RT];
  WeightsToPairs<RT>(weights, keys, pairs);
  ValuesColumnsPairs<RT, std::min(16 / RT, 8)>(v, 0, keys, v_head_dim, pairs, factor, acc,
                                               acc_stride, ahead);
}

#else

// Named by code that other targets do not instantiate.
template <int RT>
void RowsToPairs(float* rows, int64_t stride, int64_t head_dim);
template <int RT>
void ValuesPairs(const BF16* const* v, int64_t keys, int64_t v_head_dim, const float* weights,
                 const float* factor, float* acc, int64_t acc_stride, Fetcher<BF16>& ahead);

#endif

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
