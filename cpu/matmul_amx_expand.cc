// Packed quantised weights as bf16 pairs for tiles.
//
// Algorithm: a step of the packed layout is 4 elements of K of 16 features, a byte each: two rows
// of
//   pairs. One byte permutation brings two elements of 8 features to 16 lanes of 32 bits, beside
//   each other, so that after converting, scaling and adding (w = scale * q + shift, one rounding)
//   vcvtne2ps2bf16 leaves them in their places. 16 instructions per 64 weights.
#include <array>

#include "cpu/matmul_amx.h"
#include "cpu/matmul_packed.h"
#include "cpu/matmul_panels.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES(
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx512bf16")
namespace tandem::cpu {
namespace {

#include "cpu/int8_zmm-inl.h"

#define TANDEM_TILE_INLINE inline __attribute__((always_inline))
#include "cpu/matmul_packed_formats-inl.h"

constexpr int64_t kRowBytes = kPanel * 4;  // of a panel: a pair per column

// Which bytes of a step become lanes: of 8 features from 8 * half on, elements 2 * pair and the
// next; other bytes of a lane are zeroed.
struct LaneBytes {
  alignas(64) uint8_t bytes[2][2][64] = {};  // [pair][half]
  constexpr LaneBytes() {
    for (int pair = 0; pair < 2; ++pair) {
      for (int half = 0; half < 2; ++half) {
        for (int lane = 0; lane < 16; ++lane) {
          bytes[pair][half][lane * 4] =
              static_cast<uint8_t>((half * 8 + lane / 2) * 4 + pair * 2 + lane % 2);
        }
      }
    }
  }
};
constexpr LaneBytes kLaneBytes;

// One number per feature, as lanes of features 0, 0, 1, 1, .. 7, 7 and of 8, 8, .. 15, 15.
struct PerLane {
  __m512 half[2];
};
TANDEM_TILE_INLINE PerLane Spread(__m512 x) {
  const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {{_mm512_permutexvar_ps(low, x),
           _mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(8)), x)}};
}

// Two rows of pairs from one step.
TANDEM_TILE_INLINE void ExpandStep(__m512i step, const PerLane& scale, const PerLane& shift,
                                   uint8_t* to) {
#pragma GCC unroll 2
  for (int pair = 0; pair < 2; ++pair) {
    __m512 x[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i quants = _mm512_maskz_permutexvar_epi8(
          0x1111111111111111u, _mm512_load_si512(kLaneBytes.bytes[pair][half]), step);
      x[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(quants), scale.half[half], shift.half[half]);
    }
    const auto row = _mm512_cvtne2ps_pbh(x[1], x[0]);
    _mm512_storeu_si512(to + pair * kRowBytes, reinterpret_cast<__m512i>(row));
  }
}

template <class F, int kPair>
TANDEM_TILE_INLINE void ExpandPair(const uint8_t* unit, int block, int group, const PerLane& scale,
                                   const PerLane& shift, uint8_t* to) {
  __m512i even, odd;
  F::template Load<ZmmMachine, kPair>(unit, block, group, even, odd);
  ExpandStep(even, scale, shift, to + kPair * 4 * kRowBytes);
  ExpandStep(odd, scale, shift, to + kPair * 4 * kRowBytes + 2 * kRowBytes);
}

// 32 elements of K of 16 features.
template <class F>
TANDEM_TILE_INLINE void ExpandGroup(const uint8_t* unit, int block, int group, __m512 offset,
                                    uint8_t* to) {
  PerLane scale[2], shift[2];
#pragma GCC unroll 2
  for (int half = 0; half < F::kHalves; ++half) {
    const __m512 s = F::template Scale<ZmmMachine>(unit, block, half, group);
    scale[half] = Spread(s);
    if constexpr (F::kMinima) {
      const __m512 minima = F::template Minima<ZmmMachine>(unit, block, group);
      shift[half] = Spread(_mm512_sub_ps(_mm512_setzero_ps(), minima));
    } else {
      shift[half] = Spread(_mm512_mul_ps(s, offset));
    }
  }
  constexpr int kSecond = F::kHalves - 1;
  ExpandPair<F, 0>(unit, block, group, scale[0], shift[0], to);
  ExpandPair<F, 1>(unit, block, group, scale[0], shift[0], to);
  ExpandPair<F, 2>(unit, block, group, scale[kSecond], shift[kSecond], to);
  ExpandPair<F, 3>(unit, block, group, scale[kSecond], shift[kSecond], to);
}

template <class F>
void Expand(const uint8_t* units, int64_t blocks, int offset, void* panel) {
  const __m512 subtract = _mm512_set1_ps(static_cast<float>(-offset));
  auto* to = static_cast<uint8_t*>(panel);
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* unit = units + b / F::kBlocks * F::kBytes;
    const int block = static_cast<int>(b % F::kBlocks);
    ExpandGroup<F>(unit, block, 0, subtract, to);
    ExpandGroup<F>(unit, block, 1, subtract, to + 64);
    to += kStripBlock / 2 * kRowBytes;
  }
}

#undef TANDEM_TILE_INLINE
#undef TANDEM_MACHINE_INLINE

}  // namespace
}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES

namespace tandem::cpu {

ExpandUnits ExpandUnitsFor(DType dtype) {
  if (!__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512bf16")) {
    return nullptr;
  }
  switch (dtype) {
    case DType::kQ8_0:
      return Expand<TileQ8_0>;
    case DType::kQ4_0:
      return Expand<TileQ4_0>;
    case DType::kQ4_K:
      return Expand<TileQ4_K>;
    case DType::kQ5_K:
      return Expand<TileQ5_K>;
    case DType::kQ6_K:
      return Expand<TileQ6_K>;
    case DType::kTQ2_0:
      return Expand<TileTQ2_0>;
    default:
      return nullptr;
  }
}

}  // namespace tandem::cpu
