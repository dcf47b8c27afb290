// Mask creation on the device; see core/ops/mask.h.
#pragma once

#include "core/ops/mask_rule.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/device_list_view.h"
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

}  // namespace tandem::cuda
