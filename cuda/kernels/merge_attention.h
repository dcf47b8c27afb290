// Merging attention over parts of the keys on the device; see core/ops/merge_attention.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

struct MergePart {
  DeviceTensor out;  // [B, Hq, Sq, Dv]
  DeviceTensor lse;  // [B, Hq, Sq]
};
struct MergeAttentionParams {
  const MergePart* parts;  // in device memory
  int64_t count;
  DeviceTensor out, lse;
};

// One block of 128 threads per row, in a loop over rows.
TANDEM_KERNEL_FUNCTION(MergeAttentionFunction)

}  // namespace tandem::cuda
