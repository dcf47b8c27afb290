// Mask creation on the device; see core/ops/mask.h.
#pragma once

#include "core/ops/mask_rule.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/device_list_view.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

struct MaskParams {
  MaskRule rule;
  MaskRule previous;
  bool extends;      // previous counts
  DeviceTensor out;  // [B, 1, rows, columns]
  int64_t first_row;
  DeviceList q_lens, kv_lens, kv_starts;
};

// One block of 256 threads per row, in a loop over rows.
TANDEM_KERNEL_FUNCTION(MaskFunction)

// Rows in pieces of so many stores of 16 bytes: 8 for each lane of a warp.
inline constexpr int kMaskPieceStores = 256;
struct MaskVectorParams {
  MaskParams mask;  // extends nothing
  Divisor rows, pieces;
};
// Rows begin on 16 bytes; one warp per piece, kVectorThreads per block.
TANDEM_KERNEL_FUNCTION(MaskVectorFunction)

}  // namespace tandem::cuda
