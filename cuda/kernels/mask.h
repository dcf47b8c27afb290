// Mask creation on the device; see core/ops/mask.h.
#pragma once

#include "core/ops/mask_rule.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

// One number per sequence, in device memory; data is nullptr if it was not given.
struct DeviceList {
  const int32_t* data = nullptr;
  int64_t stride = 0;

  // Entry i brought into low..high (a bad number must not lead outside any memory), or `otherwise`.
  TANDEM_HOST_DEVICE int64_t At(int64_t i, int64_t low, int64_t high, int64_t otherwise) const {
    if (data == nullptr) return otherwise;
    const int64_t value = data[i * stride];
    return value < low ? low : value > high ? high : value;
  }
};

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
