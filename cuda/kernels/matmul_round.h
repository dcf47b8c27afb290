// The left operand of a product in the type of the right one, dense, for libraries that multiply
// two matrices of one type only.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kRoundThreads = 256;

// rounded[z,m,k] = a[z,m,k] / scale[z,m], rounded to nearest even. With `scales` a row's scale is
// the power of two that brings its largest finite magnitude to [2^14, 2^15): nothing overflows f16,
// and nothing down to 2^-38 of the row's largest is lost. Without: 1.
struct MatMulRoundParams {
  DeviceTensor a;        // rank 3, [Z, M, K]
  DeviceTensor rounded;  // rank 2, [Z * M, K]
  float* scales;         // [Z * M] or nullptr
  int64_t rows, m, k;    // rows: Z * M
};

template <typename Carver>
TANDEM_HOST_DEVICE float* MatMulRoundScratch(Carver& shared) {
  return shared.template Take<float>(kRoundThreads / 32);  // one per warp
}

TANDEM_KERNEL_FUNCTION(MatMulRoundFunction)

}  // namespace tandem::cuda
