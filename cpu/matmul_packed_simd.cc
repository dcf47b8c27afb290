// What the packed integer product does with vectors of floats: rounding activations to 8 bits as
// strips (matmul_packed.h), and the epilogue.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_packed_simd.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/matmul_packed.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/quantize_activations-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

void QuantizeStrip(const TensorView& a, int64_t m0, int64_t rows, int64_t blocks,
                   const PackedFormat& format, float* row, uint8_t* strip) {
  static_assert(kStripBlock == kActivationBlock);
  const int64_t k = a.dim(-1), stride = a.stride(-1);
  const int64_t whole = k / kStripBlock;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t offset = a.stride(-2) * (m0 + r);
    const float* from = row;
    if (a.dtype == DType::kF32 && (stride == 1 || k <= 1)) {
      from = a.As<float>() + offset;
      if (whole * kStripBlock < k) {
        std::copy_n(from + whole * kStripBlock, k % kStripBlock, row + whole * kStripBlock);
      }
    } else {
      WidenViewRow(a, offset, stride, k, row);
    }
    std::fill(row + k, row + blocks * kStripBlock, 0.0f);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* x = (b < whole ? from : row) + b * kStripBlock;
      uint8_t* block = strip + b * rows * kStripRowBytes;
      float scale;
      int32_t sums[2];
      QuantizeActivations(x, reinterpret_cast<int8_t*>(block + r * kStripBlock), &scale, sums);
      int32_t words[2] = {-format.offset * (sums[0] + sums[1]), 0};
      switch (format.corrections) {
        case Corrections::kOffset:
          break;
        case Corrections::kHalves:
          words[0] = -format.offset * sums[0];
          words[1] = -format.offset * sums[1];
          break;
        case Corrections::kMinima: {
          const float scaled = scale * static_cast<float>(sums[0] + sums[1]);
          std::memcpy(&words[0], &scaled, sizeof(scaled));
          break;
        }
      }
      uint8_t* tail = block + rows * kStripBlock + r * 4;
      std::memcpy(tail, &scale, 4);
      std::memcpy(tail + rows * 4, &words[0], 4);
      std::memcpy(tail + rows * 8, &words[1], 4);
    }
  }
}

void FinishStripTile(const MatMulArgs& args, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                     float* tile) {
  FinishTile(args, MatMulOperands(args), 0, m0, rows, n0, columns, tile, kPanelColumns);
}

void FinishGatedStripTile(const MatMulArgs& gate, const MatMulArgs& up, int64_t m0, int64_t rows,
                          int64_t n0, int64_t columns, float* gate_tile, float* up_tile) {
  FinishGatedTile(gate, up, m0, rows, n0, columns, gate_tile, up_tile, kPanelColumns);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {

const StripOps& StripOpsFor(Isa isa) {
  static constexpr StripOps kAvx512 = {N_AVX3::QuantizeStrip, N_AVX3::FinishStripTile,
                                       N_AVX3::FinishGatedStripTile};
  static constexpr StripOps kAvx2 = {N_AVX2::QuantizeStrip, N_AVX2::FinishStripTile,
                                     N_AVX2::FinishGatedStripTile};
  static constexpr StripOps kScalar = {TANDEM_N_SCALAR::QuantizeStrip,
                                       TANDEM_N_SCALAR::FinishStripTile,
                                       TANDEM_N_SCALAR::FinishGatedStripTile};
  return isa == Isa::kAvx512 ? kAvx512 : (isa == Isa::kAvx2 ? kAvx2 : kScalar);
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
