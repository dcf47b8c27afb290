// Element-wise sum on the device; see core/ops/add.h.
#pragma once

#include "core/dtype.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

struct AddParams {
  DeviceTensor a, b, out;  // [rows, columns]; b has stride 0 where it is broadcast
  int64_t rows, columns;
};

// One thread per element, in a grid-stride loop over blocks of one dimension.
TANDEM_KERNEL_FUNCTION(AddFunction, DType a, DType b, DType out)

}  // namespace tandem::cuda
