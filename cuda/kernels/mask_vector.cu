// Mask creation for rows that begin on 16 bytes: one warp per piece of a row, which asks the rule
// once and then stores 16 bytes per lane and step - 4 cells of f32, 8 of f16 and bf16, 16 of bool,
// 128 keys of the packed form. Stores that lie wholly inside or outside the visible range, all but
// two of a row, are a constant. Writes only, every byte once.
#include "core/ops/mask.h"
#include "cuda/device/memory.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/mask.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// How the cells of a mask look: `per_word` in 32 bits.
struct CellKind {
  int per_word;
  uint32_t visible, hidden;  // of a whole word
  int keys_per_word;
};
__device__ CellKind KindOf(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return {2, 0u, 0xFC00FC00u, 2};
    case DType::kBF16:
      return {2, 0u, 0xFF80FF80u, 2};
    case DType::kBool:
      return {4, 0x01010101u, 0u, 4};
    case DType::kU32:
      return {1, 0xFFFFFFFFu, 0u, 32};
    default:
      return {1, 0u, 0xFF800000u, 1};
  }
}

// Bits low .. high - 1, as many as there are.
__device__ uint32_t Bits(int low, int high) {
  const uint32_t below_high = high >= 32 ? ~0u : high <= 0 ? 0u : (1u << high) - 1;
  const uint32_t below_low = low >= 32 ? ~0u : low <= 0 ? 0u : (1u << low) - 1;
  return below_high & ~below_low;
}

// The word whose keys low .. high - 1, counted from its first, are visible.
__device__ uint32_t WordOf(const CellKind& kind, int low, int high) {
  if (kind.keys_per_word == 32) return Bits(low, high);
  // One bit per cell, spread to the cells.
  const uint32_t cells = Bits(low, high);
  const int width = 32 / kind.per_word;
  uint32_t select = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (c < kind.per_word && (cells >> c & 1u)) select |= Bits(c * width, (c + 1) * width);
  }
  return (kind.visible & select) | (kind.hidden & ~select);
}

// Key `key` counted from `from`; what is far away stays far away.
__device__ int Relative(int64_t key, int64_t from) {
  const int64_t difference = key - from;
  return difference < -1 ? -1 : difference > 1024 ? 1024 : static_cast<int>(difference);
}

__global__ void __launch_bounds__(kVectorThreads) MaskVectorKernel(const MaskVectorParams p) {
  const MaskParams& m = p.mask;
  const CellKind kind = KindOf(m.out.dtype);
  const int cells = 4 * kind.per_word, keys = 4 * kind.keys_per_word;  // of a store
  const int cell_bytes = 4 / kind.per_word;
  const int64_t columns = m.out.dims[3], stores = columns / cells;
  constexpr int kWarps = kVectorThreads / kWarpSize;
  const int64_t pieces = p.pieces.value();
  for (int64_t i = int64_t{blockIdx.x} * kWarps + WarpId();
       i < m.out.dims[0] * m.out.dims[2] * pieces; i += int64_t{gridDim.x} * kWarps) {
    const Divisor::Result piece = p.pieces.Divide(i), row = p.rows.Divide(piece.quotient);
    const int64_t sequence = row.quotient;
    MaskRule rule = m.rule;
    rule.q_len = m.q_lens.At(sequence, 0, m.rule.q_len, rule.q_len);
    rule.kv_len = m.kv_lens.At(sequence, 0, m.rule.kv_len, rule.kv_len);
    rule.kv_begin = m.kv_starts.At(sequence, 0, kMaxSequenceLength, rule.kv_begin);
    const KeyRange visible = VisibleKeys(rule, m.first_row + row.remainder);
    auto* out = m.out.As<unsigned char>() +
                (sequence * m.out.strides[0] + row.remainder * m.out.strides[2]) * cell_bytes;
    const int64_t begin = piece.remainder * kMaskPieceStores;
    const int64_t end = begin + kMaskPieceStores < stores ? begin + kMaskPieceStores : stores;
    for (int64_t s = begin + LaneId(); s < end; s += kWarpSize) {
      const int low = Relative(visible.begin, s * keys), high = Relative(visible.end, s * keys);
      Packed<16> words;
      if (low <= 0 && high >= keys) {
        words = {{kind.visible, kind.visible, kind.visible, kind.visible}};
      } else if (high <= 0 || low >= keys || low >= high) {
        words = {{kind.hidden, kind.hidden, kind.hidden, kind.hidden}};
      } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          words.words[w] =
              WordOf(kind, low - w * kind.keys_per_word, high - w * kind.keys_per_word);
        }
      }
      StorePacked(out + s * kVectorBytes, words);
    }
    // The cells behind the last whole store, one per lane.
    const int64_t cell = stores * cells + LaneId();
    if (piece.remainder != pieces - 1 || cell >= columns) continue;
    const int64_t key = cell * (keys / cells);
    const uint32_t word = WordOf(kind, Relative(visible.begin, key), Relative(visible.end, key));
    if (cell_bytes == 4) {
      reinterpret_cast<uint32_t*>(out)[cell] = word;
    } else if (cell_bytes == 2) {
      reinterpret_cast<uint16_t*>(out)[cell] = static_cast<uint16_t>(word);
    } else {
      out[cell] = static_cast<unsigned char>(word);
    }
  }
}

}  // namespace

KernelFunction MaskVectorFunction() { return MakeKernelFunction<&MaskVectorKernel>("mask_vector"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
