// Ops that reduce a row: core/ops/softmax.h, core/ops/rms_norm.h, core/ops/argmax.h. One block of
// kRowThreads threads per row, in a grid-stride loop over rows.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kRowThreads = 256;

struct SoftmaxParams {
  DeviceTensor x, out;  // rows as in RowOffset
  int64_t rows, columns;
  float scale;
};
struct RmsNormParams {
  DeviceTensor x, weight, out, residual, sum;  // weight: [columns] in dimension 0
  int64_t rows, columns;
  float eps;
};
struct ArgMaxParams {
  DeviceTensor x, out;
  int64_t rows, columns;
};

TANDEM_KERNEL_FUNCTION(SoftmaxFunction)
TANDEM_KERNEL_FUNCTION(RmsNormFunction)
TANDEM_KERNEL_FUNCTION(ArgMaxFunction)

}  // namespace tandem::cuda
