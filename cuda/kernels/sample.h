// Drawing a token per row on the device; see core/ops/sample.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kSampleThreads = 256;
inline constexpr int kSampleDigits = 256;  // radix of the sort

// Scratch of one block, in device memory.
struct SampleScratch {
  uint32_t* keys[2];    // [N]
  int32_t* tokens[2];   // [N]
  uint32_t* positions;  // [kSampleDigits, kSampleThreads]
};
struct SampleParams {
  DeviceTensor logits, uniform, out;  // [R, N], [R], [R]
  int64_t rows, columns;
  float temperature;
  int64_t top_k;
  float top_p;
  // Of block b: these plus b times `columns` (keys and tokens) or the extent of positions.
  SampleScratch scratch;
};

TANDEM_KERNEL_FUNCTION(SampleFunction)

}  // namespace tandem::cuda
