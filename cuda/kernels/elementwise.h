// Element-wise ops on the device: core/ops/add.h, core/ops/silu_mul.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

// out[r,n] = f(a[r,n], b[r,n]); b has stride 0 where it is broadcast. One thread per element, in a
// grid-stride loop over blocks of one dimension.
struct BinaryParams {
  DeviceTensor a, b, out;
  int64_t rows, columns;
};

// As below, eight elements per thread and step: rows begin on 16 bytes. grid.y: rows.
TANDEM_KERNEL_FUNCTION(AddVectorFunction)
TANDEM_KERNEL_FUNCTION(SiluMulVectorFunction)
TANDEM_KERNEL_FUNCTION(AddFunction)
TANDEM_KERNEL_FUNCTION(SiluMulFunction)

}  // namespace tandem::cuda
