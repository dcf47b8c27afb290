// Mask creation, generic: one block per row, which asks the rule once for the row's visible keys
// and then writes whole rows of two values. Writes only; extension in place writes what differs.
#include "core/ops/mask.h"
#include "cuda/device/target.h"
#include "cuda/kernels/mask.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__device__ uint32_t Within(KeyRange range, int64_t j) { return j >= range.begin && j < range.end; }

// Cell `column` of a row: 0 or 1, or a word of 32 of them.
__device__ uint32_t Cell(KeyRange range, int64_t column, bool packed) {
  if (!packed) return Within(range, column);
  uint32_t word = 0;
  for (int bit = 0; bit < 32; ++bit) word |= Within(range, column * 32 + bit) << bit;
  return word;
}

__device__ void StoreCell(const DeviceTensor& out, int64_t offset, uint32_t cell) {
  switch (out.dtype) {
    case DType::kF16:
      out.As<F16>()[offset] = {static_cast<uint16_t>(cell ? 0 : 0xFC00)};
      return;
    case DType::kBF16:
      out.As<BF16>()[offset] = {static_cast<uint16_t>(cell ? 0 : 0xFF80)};
      return;
    case DType::kBool:
      out.As<uint8_t>()[offset] = static_cast<uint8_t>(cell);
      return;
    case DType::kU32:
      out.As<uint32_t>()[offset] = cell;
      return;
    default:
      out.As<uint32_t>()[offset] = cell ? 0u : 0xFF800000u;
  }
}

__global__ void MaskKernel(const MaskParams p) {
  const bool packed = p.out.dtype == DType::kU32;
  const int64_t rows = p.out.dims[2], columns = p.out.dims[3];
  const int64_t old_keys = p.previous.kv_len;
  const int64_t old_columns = packed ? old_keys / 32 + (old_keys % 32 != 0) : old_keys;
  for (int64_t i = blockIdx.x; i < p.out.dims[0] * rows; i += gridDim.x) {
    const int64_t sequence = i / rows, row = p.first_row + i % rows;
    MaskRule rule = p.rule;
    rule.q_len = p.q_lens.At(sequence, 0, p.rule.q_len, rule.q_len);
    rule.kv_len = p.kv_lens.At(sequence, 0, p.rule.kv_len, rule.kv_len);
    rule.kv_begin = p.kv_starts.At(sequence, 0, kMaxSequenceLength, rule.kv_begin);
    const KeyRange visible = VisibleKeys(rule, row);
    const bool shared = p.extends && row < p.previous.q_len;
    const KeyRange before = shared ? VisibleKeys(p.previous, row) : KeyRange{0, 0};
    const int64_t out = RowOffset(p.out, i);
    for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) {
      const uint32_t cell = Cell(visible, j, packed);
      if (shared && j < old_columns && cell == Cell(before, j, packed)) continue;
      StoreCell(p.out, out + j * p.out.strides[3], cell);
    }
  }
}

}  // namespace

KernelFunction MaskFunction() { return MakeKernelFunction<&MaskKernel>("mask"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
