// Panels and tiles of the tiled matrix product (matmul_tiled.h), for each instruction set.
//
// Expanding: kLanes weight rows at a time, a chunk of elements of K at a time: the rows are widened
// (or dequantised) into a buffer in L1 and transposed from there. Transposition: each vector
// gathers one 128-bit piece from kLanes / 4 rows, and two levels of 32- and 64-bit interleaving
// transpose the 4 x 4 pieces: half the shuffles of a transposition that works on whole rows.
//
// Multiplying: the usual register-blocked outer product. kRows x kVectors accumulators stay in
// registers while K is walked once; per step kVectors loads of the panel and kRows broadcasts of a.
// The panel (K * 256 bytes) is read from L2 once per kRows rows, the rows of a from L1.
//
// Order of the sums: k ascending in one accumulator per output, whatever the tile.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_panels_simd.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on
#include <algorithm>
#include <cstring>

#include "cpu/matmul_panels.h"
#include "cpu/matmul_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Elements of K per pass, whole blocks; kLanes rows of it (8 or 16 KiB) stay in L1.
template <typename T>
constexpr int64_t kBlock = 1;
template <typename T>
requires kIsBlock<T>
constexpr int64_t kBlock<T> = T::kLength;
template <typename T>
constexpr int64_t kChunk = std::max<int64_t>(128, kBlock<T>);
static_assert(kMaxTileColumns == kPanel);

void WidenRows(const TensorView& a, int64_t offset, int64_t m0, int64_t rows, int64_t k,
               float* to) {
  for (int64_t i = 0; i < rows; ++i) {
    WidenViewRow(a, offset + a.stride(-2) * (m0 + i), a.stride(-1), k, to + i * k);
  }
}

void NarrowRows(const TensorView& a, int64_t offset, int64_t m0, int64_t rows, int64_t k,
                BF16* to) {
  const int64_t step = a.stride(-1);
  DispatchFloat(a.dtype, [&]<typename T>() HWY_ATTR {
    for (int64_t i = 0; i < rows; ++i, to += k) {
      const T* from = a.As<T>() + offset + a.stride(-2) * (m0 + i);
      if (step == 1) {
        ConvertSpan(from, to, k);
      } else {
        for (int64_t j = 0; j < k; ++j) to[j] = ToBF16(ToFloat(from[j * step]));
      }
    }
  });
}

void SplitRow(const TensorView& a, int64_t offset, int64_t m, int64_t k, BF16* high, BF16* low) {
  constexpr int64_t kPiece = 256;
  HWY_ALIGN float x[kPiece], rounded[kPiece];
  const int64_t step = a.stride(-1);
  for (int64_t begin = 0; begin < k; begin += kPiece) {
    const int64_t count = std::min(kPiece, k - begin);
    std::fill(x + count, x + kPiece, 0.0f);
    WidenViewRow(a, offset + a.stride(-2) * m + step * begin, step, count, x);
    ConvertSpan(x, high + begin, count);
    std::fill(rounded + count, rounded + kPiece, 0.0f);
    ConvertSpan(high + begin, rounded, count);
    for (int64_t i = 0; i < kPiece; i += kLanes) {
      const auto h = LoadFloats(rounded + i);
      StoreFloats(hn::IfThenElseZero(hn::IsFinite(h), hn::Sub(LoadFloats(x + i), h)), x + i);
    }
    ConvertSpan(x, low + begin, count);
  }
}

// panel[k][j] = rows[j][k] for kLanes rows, kStride floats apart.
template <int64_t kStride>
HWY_INLINE void TransposeRows(const float* HWY_RESTRICT rows, int64_t count,
                              float* HWY_RESTRICT panel) {
  int64_t k = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const FloatTag d;
  const hn::Repartition<double, FloatTag> d64;
  for (; k + 4 <= count; k += 4) {
    FloatVector piece[4];
    for (int r = 0; r < 4; ++r) {
      // Rows r, r + 4, r + 8, ...: after transposing within 128 bits, lane order is row order.
      const float* from = rows + r * kStride + k;
#if HWY_TARGET == HWY_AVX3
      __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(from));
      v = _mm512_insertf32x4(v, _mm_loadu_ps(from + 4 * kStride), 1);
      v = _mm512_insertf32x4(v, _mm_loadu_ps(from + 8 * kStride), 2);
      piece[r] = FloatVector{_mm512_insertf32x4(v, _mm_loadu_ps(from + 12 * kStride), 3)};
#else
      piece[r] = FloatVector{_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)),
                                                  _mm_loadu_ps(from + 4 * kStride), 1)};
#endif
    }
    const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, piece[0], piece[1]));
    const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, piece[2], piece[3]));
    const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, piece[0], piece[1]));
    const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, piece[2], piece[3]));
    float* to = panel + k * kPanel;
    StoreFloats(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), to);
    StoreFloats(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), to + kPanel);
    StoreFloats(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), to + 2 * kPanel);
    StoreFloats(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), to + 3 * kPanel);
  }
#endif
  for (; k < count; ++k) {
    for (int64_t j = 0; j < kLanes; ++j) panel[k * kPanel + j] = rows[j * kStride + k];
  }
}

// Requests the cache lines of kBytes bytes.
template <int64_t kBytes>
HWY_INLINE void Prefetch(const void* from, bool wanted) {
  if (!wanted) return;
  const char* line = static_cast<const char*>(from);
  for (int64_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(line + byte, 0, 2);
}

// Rows contiguous along K: `row` elements (blocks) apart from `b`.
template <typename T>
void ExpandRows(const T* b, int64_t row, int64_t columns, int64_t k, float* panel) {
  constexpr int64_t kStep = kChunk<T>;
  HWY_ALIGN float buffer[kLanes * kStep];
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const int64_t present = std::clamp<int64_t>(columns - j, 0, kLanes);
    if (present < kLanes) std::fill(buffer, buffer + kLanes * kStep, 0.0f);
    for (int64_t begin = 0; begin < k; begin += kStep) {
      const int64_t count = std::min(kStep, k - begin);
      for (int64_t r = 0; r < present; ++r) {
        const T* from = b + (j + r) * row + begin / kBlock<T>;
        // The next chunk of this row; at the end of the rows, the first of the next kLanes rows.
        const bool more = begin + kStep < k;
        Prefetch<kStep / kBlock<T>* static_cast<int64_t>(sizeof(T))>(
            more ? from + kStep / kBlock<T> : from + kLanes * row - begin / kBlock<T>,
            more || j + r + kLanes < columns);
        WidenRow(from, count, buffer + r * kStep);
      }
      TransposeRows<kStep>(buffer, count, panel + begin * kPanel + j);
    }
  }
}

void ExpandPanel(const TensorView& b, int64_t offset, int64_t n0, int64_t columns, int64_t k,
                 float* panel) {
  const int64_t row = b.stride(-2), step = b.stride(-1);
  if (IsBlockQuantized(b.dtype)) {
    return DispatchBlock(b.dtype, [&]<typename T>() HWY_ATTR {
      ExpandRows(b.As<T>() + (offset + n0 * row) / T::kLength, row / T::kLength, columns, k, panel);
    });
  }
  if (step == 1) {
    return DispatchFloat(b.dtype, [&]<typename T>() HWY_ATTR {
      ExpandRows(b.As<T>() + offset + n0 * row, row, columns, k, panel);
    });
  }
  // [K, N] memory (row == 1) and anything else: already in the panel's order.
  for (int64_t i = 0; i < k; ++i) {
    float* to = panel + i * kPanel;
    WidenViewRow(b, offset + n0 * row + i * step, row, columns, to);
    std::fill(to + columns, to + kPanel, 0.0f);
  }
}

// A pair of bf16 is moved as one 32-bit unit: the same transposition.
void PairPanel(const TensorView& b, int64_t offset, int64_t n0, int64_t columns, int64_t k,
               BF16* panel) {
  constexpr int64_t kPairs = kChunk<float>;
  HWY_ALIGN float buffer[kLanes * kPairs];
  const int64_t row = b.stride(-2);
  for (int64_t j = 0; j < kPanel; j += kLanes) {
    const int64_t present = std::clamp<int64_t>(columns - j, 0, kLanes);
    for (int64_t begin = 0; begin < PaddedPairDepth(k); begin += 2 * kPairs) {
      const int64_t count = std::clamp<int64_t>(k - begin, 0, 2 * kPairs);
      const int64_t padded = std::min(2 * kPairs, PaddedPairDepth(k) - begin);
      if (present < kLanes || count < padded) std::fill_n(buffer, kLanes * kPairs, 0.0f);
      for (int64_t r = 0; r < present; ++r) {
        const BF16* from = b.As<BF16>() + offset + (n0 + j + r) * row + begin;
        const bool more = begin + 2 * kPairs < k;  // as in ExpandRows
        Prefetch<4 * kPairs>(more ? from + 2 * kPairs : from + kLanes * row - begin,
                             more || j + r + kLanes < columns);
        std::memcpy(buffer + r * kPairs, from, static_cast<size_t>(count) * sizeof(BF16));
      }
      TransposeRows<kPairs>(buffer, padded / 2,
                            reinterpret_cast<float*>(panel + begin * kPanel) + j);
    }
  }
}

// Truncated to bf16, an f16 number leaves at most 3 bits.
void SplitPanel(const TensorView& b, int64_t offset, int64_t n0, int64_t columns, int64_t k,
                BF16* high, BF16* low) {
  const FloatTag d;
  const hn::Repartition<uint32_t, FloatTag> du;
  const auto top = hn::Set(du, 0xFFFF0000u);
  HWY_ALIGN float wide[kPairDepth * kPanel];
  for (int64_t begin = 0; begin < k; begin += kPairDepth) {
    const int64_t count = std::min(kPairDepth, k - begin);
    if (count < kPairDepth) std::fill_n(wide, kPairDepth * kPanel, 0.0f);
    ExpandPanel(b, offset + begin, n0, columns, count, wide);
    for (int64_t i = 0; i < kPairDepth * kPanel; i += 2 * kPanel) {
      for (int64_t j = 0; j < kPanel; j += kLanes) {
        const auto even = LoadFloats(wide + i + j), odd = LoadFloats(wide + i + kPanel + j);
        const auto low_of = [&](FloatVector x) HWY_ATTR {
          const auto left = hn::Sub(x, hn::BitCast(d, hn::And(hn::BitCast(du, x), top)));
          return hn::BitCast(du, hn::IfThenElseZero(hn::IsFinite(x), left));
        };
        const auto pair = [&](auto x, auto y)
                              HWY_ATTR { return hn::Or(hn::ShiftRight<16>(x), hn::And(y, top)); };
        const int64_t to = begin * kPanel + i + 2 * j;
        hn::StoreU(pair(hn::BitCast(du, even), hn::BitCast(du, odd)), du,
                   reinterpret_cast<uint32_t*>(high + to));
        hn::StoreU(pair(low_of(even), low_of(odd)), du, reinterpret_cast<uint32_t*>(low + to));
      }
    }
  }
}

void WidenPairs(const BF16* HWY_RESTRICT pairs, int64_t k, float* HWY_RESTRICT panel) {
  const FloatTag d;
  const hn::Repartition<uint32_t, FloatTag> du;
  for (int64_t i = 0; i < k; i += 2, pairs += 2 * kPanel) {
    float* const even = panel + i * kPanel;
    for (int64_t j = 0; j < kPanel; j += kLanes) {
      const auto both = hn::LoadU(du, reinterpret_cast<const uint32_t*>(pairs + 2 * j));
      StoreFloats(hn::BitCast(d, hn::ShiftLeft<16>(both)), even + j);
      if (i + 1 == k) continue;
      StoreFloats(hn::BitCast(d, hn::And(both, hn::Set(du, 0xFFFF0000u))), even + kPanel + j);
    }
  }
}

template <int kRows, int kVectors>
HWY_INLINE void MultiplyBlock(const float* HWY_RESTRICT a, const float* HWY_RESTRICT panel,
                              int64_t k, float* HWY_RESTRICT tile) {
  const FloatTag d;
  FloatVector sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int64_t i = 0; i < k; ++i) {
    FloatVector column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = LoadFloats(panel + i * kPanel + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto x = hn::Set(d, a[r * k + i]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(x, column[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) StoreFloats(sum[r][v], tile + r * kPanel + v * kLanes);
  }
}

// A group of columns (as many as the registers take) of one block of rows.
template <int kRows>
void MultiplyRows(const float* a, const float* panel, int64_t k, float* tile) {
  // 24 accumulators of 32 registers with AVX-512, 12 of 16 with AVX2.
  constexpr int kVectors = kLanes >= 16 ? 4 : 2;
  for (int64_t j = 0; j < kPanel; j += kVectors * kLanes) {
    MultiplyBlock<kRows, kVectors>(a, panel + j, k, tile + j);
  }
}

void Multiply(const float* a, const float* panel, int64_t rows, int64_t k, float* tile) {
  int64_t i = 0;
  for (; i + 6 <= rows; i += 6) MultiplyRows<6>(a + i * k, panel, k, tile + i * kPanel);
  switch (rows - i) {
    case 5:
      return MultiplyRows<5>(a + i * k, panel, k, tile + i * kPanel);
    case 4:
      return MultiplyRows<4>(a + i * k, panel, k, tile + i * kPanel);
    case 3:
      return MultiplyRows<3>(a + i * k, panel, k, tile + i * kPanel);
    case 2:
      return MultiplyRows<2>(a + i * k, panel, k, tile + i * kPanel);
    case 1:
      return MultiplyRows<1>(a + i * k, panel, k, tile + i * kPanel);
    default:
      return;
  }
}

void FinishPanelTile(const MatMulArgs& args, const MatMulOperands& operands, int64_t z, int64_t m0,
                     int64_t rows, int64_t n0, int64_t columns, float* tile) {
  FinishTile(args, operands, z, m0, rows, n0, columns, tile, kPanel);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {

const PanelOps& PanelOpsFor(Isa isa) {
  static constexpr PanelOps avx512 = {
      N_AVX3::WidenRows,   N_AVX3::NarrowRows, N_AVX3::SplitRow,
      N_AVX3::ExpandPanel, N_AVX3::PairPanel,  N_AVX3::SplitPanel,
      N_AVX3::WidenPairs,  N_AVX3::Multiply,   N_AVX3::FinishPanelTile};
  static constexpr PanelOps avx2 = {
      N_AVX2::WidenRows,   N_AVX2::NarrowRows, N_AVX2::SplitRow,
      N_AVX2::ExpandPanel, N_AVX2::PairPanel,  N_AVX2::SplitPanel,
      N_AVX2::WidenPairs,  N_AVX2::Multiply,   N_AVX2::FinishPanelTile};
  static constexpr PanelOps scalar = {
      TANDEM_N_SCALAR::WidenRows,   TANDEM_N_SCALAR::NarrowRows, TANDEM_N_SCALAR::SplitRow,
      TANDEM_N_SCALAR::ExpandPanel, TANDEM_N_SCALAR::PairPanel,  TANDEM_N_SCALAR::SplitPanel,
      TANDEM_N_SCALAR::WidenPairs,  TANDEM_N_SCALAR::Multiply,   TANDEM_N_SCALAR::FinishPanelTile};
  switch (isa) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return scalar;
  }
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
