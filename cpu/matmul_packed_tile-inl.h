// The inner loops of the packed integer product (matmul_packed.h), over a Machine: one instruction
// set's vectors of 64 unsigned bytes, 16 integers and 16 floats. Included by one file per Machine,
// inside namespace tandem::cpu and its own anonymous namespace, within HWY_PUSH_ATTRIBUTES: hence
// no includes here, no lambdas, no library calls.
//
// Algorithm: per 32 elements of K, `rows` x 32 integer sums (12 registers at 6 rows) start from the
//   correction of the weights' offset, so that it costs nothing; each step loads the weights of
//   both groups once and each row's four activations once, as a broadcast. Then sums += weight
//   scale x activation scale x integer sum: one conversion, multiply and multiply-add for 512
//   products.
// Measured (6 rows, Zen 5, 282 GFLOP/s of f32 multiply-adds): 900 G operations/s from L2, 880 with
//   4 x 32 and 800 with 12 x 16, which loads more than it multiplies.

#define TANDEM_TILE_INLINE inline __attribute__((always_inline))

#include "cpu/matmul_packed_formats-inl.h"

// --- The product -------------------------------------------------------------------------------

// Steps 2 kPair and 2 kPair + 1 of groups [kFirst, kFirst + kCount).
template <class M, class F, int kRows, int kFirst, int kCount, int kPair>
TANDEM_TILE_INLINE void AddPair(const uint8_t* unit, int block, const uint8_t* activations,
                                typename M::Ints (&sums)[kRows][kCount]) {
  typename M::Bytes even[kCount], odd[kCount];
#pragma GCC unroll 2
  for (int g = 0; g < kCount; ++g) {
    F::template Load<M, kPair>(unit, block, kFirst + g, even[g], odd[g]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    const uint8_t* four = activations + r * 32 + kPair * 8;
    const typename M::Quad first = M::LoadQuad(four), second = M::LoadQuad(four + 4);
#pragma GCC unroll 2
    for (int g = 0; g < kCount; ++g) {
      M::template AddDots<F::kMax>(even[g], odd[g], first, second, sums[r][g]);
    }
  }
}

// One half of a block (the whole block where both halves have one scale).
template <class M, class F, int kRows, int kFirst, int kCount, int kHalf>
TANDEM_TILE_INLINE void AddHalf(const uint8_t* unit, int block, const uint8_t* activations,
                                typename M::Floats (&total)[kRows][2]) {
  const uint8_t* scales = activations + kRows * 32;
  const uint8_t* corrections = scales + kRows * 4 * (1 + kHalf);
  typename M::Ints sums[kRows][kCount];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < kCount; ++g) {
      sums[r][g] = F::kOffset ? M::template StartFrom<F::kMax>(corrections + r * 4) : M::ZeroInts();
    }
  }
  if constexpr (F::kHalves == 1 || kHalf == 0) {
    AddPair<M, F, kRows, kFirst, kCount, 0>(unit, block, activations, sums);
    AddPair<M, F, kRows, kFirst, kCount, 1>(unit, block, activations, sums);
  }
  if constexpr (F::kHalves == 1 || kHalf == 1) {
    AddPair<M, F, kRows, kFirst, kCount, 2>(unit, block, activations, sums);
    AddPair<M, F, kRows, kFirst, kCount, 3>(unit, block, activations, sums);
  }
  typename M::Floats weights[kCount];
#pragma GCC unroll 2
  for (int g = 0; g < kCount; ++g) {
    weights[g] = F::template Scale<M>(unit, block, kHalf, kFirst + g);
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < kCount; ++g) {
      typename M::Floats& to = total[r][kFirst + g];
      to = M::MulAdd(M::ToFloats(sums[r][g]), M::MulScalar(weights[g], scales + r * 4), to);
    }
  }
  if constexpr (F::kMinima) {
#pragma GCC unroll 2
    for (int g = 0; g < kCount; ++g) {
      const typename M::Floats minima = F::template Minima<M>(unit, block, kFirst + g);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        typename M::Floats& to = total[r][kFirst + g];
        to = M::SubtractScaled(to, minima, corrections + r * 4);
      }
    }
  }
}

template <class M, class F, int kRows, int kFirst, int kCount>
TANDEM_TILE_INLINE void AddBlock(const uint8_t* unit, int block, const uint8_t* activations,
                                 typename M::Floats (&total)[kRows][2]) {
  AddHalf<M, F, kRows, kFirst, kCount, 0>(unit, block, activations, total);
  if constexpr (F::kHalves == 2) {
    AddHalf<M, F, kRows, kFirst, kCount, 1>(unit, block, activations, total);
  }
}

template <class M, class F, int kRows>
__attribute__((noinline)) void MultiplyRows(const StripProduct& product) {
  typename M::Floats total[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < 2; ++g) {
      total[r][g] =
          product.accumulate ? M::LoadFloats(product.tile + r * 32 + g * 16) : M::ZeroFloats();
    }
  }
  const uint8_t* unit = product.units;
  const uint8_t* activations = product.activations;
  const uint8_t* prefetch = unit + product.ahead;
  const int64_t lines = product.prefetch_lines;
  for (int64_t u = 0; u < product.count; ++u) {
    for (int block = 0; block < F::kBlocks; ++block) {
      for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(prefetch + i * 64, 0, 3);
      prefetch += lines * 64;
      if constexpr (M::kGroups == 2) {
        AddBlock<M, F, kRows, 0, 2>(unit, block, activations, total);
      } else {
        AddBlock<M, F, kRows, 0, 1>(unit, block, activations, total);
        AddBlock<M, F, kRows, 1, 1>(unit, block, activations, total);
      }
      activations += kRows * kStripRowBytes;
    }
    unit += F::kBytes;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < 2; ++g) M::StoreFloats(total[r][g], product.tile + r * 32 + g * 16);
  }
}

template <class M, class F, int kRows = M::kRows>
void MultiplyStripOf(const StripProduct& product) {
  if constexpr (kRows == 1) {
    MultiplyRows<M, F, 1>(product);
  } else {
    if (product.rows == kRows) return MultiplyRows<M, F, kRows>(product);
    MultiplyStripOf<M, F, kRows - 1>(product);
  }
}

template <class M>
MultiplyStrip MultiplyStripFor(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return MultiplyStripOf<M, TileQ8_0>;
    case DType::kQ4_0:
      return MultiplyStripOf<M, TileQ4_0>;
    case DType::kQ4_K:
      return MultiplyStripOf<M, TileQ4_K>;
    case DType::kQ5_K:
      return MultiplyStripOf<M, TileQ5_K>;
    case DType::kQ6_K:
      return MultiplyStripOf<M, TileQ6_K>;
    case DType::kTQ2_0:
      return MultiplyStripOf<M, TileTQ2_0>;
    default:
      return nullptr;
  }
}

#undef TANDEM_TILE_INLINE
