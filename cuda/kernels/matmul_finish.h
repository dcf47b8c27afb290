// What follows a product that a library has computed in f32: the rest of core/ops/matmul.h's
// equation, where the library has no epilogue for it.
#pragma once

#include "core/ops/matmul_activation.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kFinishThreads = 256;
inline constexpr int kFinishColumns = 1024;  // of one row, per block at a time

// out[z,m,n] = act( product[z,m,n] * scale[z,m] + bias[n] ) + beta * addend[z,m,n]
struct MatMulFinishParams {
  const float* product;        // columns have stride 1
  int64_t product_row_stride;  // the products of a batch follow each other
  const float* scales;         // of rows, see matmul_round.h; nullptr: all 1
  int64_t scales_batch_stride;
  DeviceTensor bias, addend, out;  // rank 3, [Z, M, N]; the bias: rank 1
  int64_t batch, m, n;
  float beta;
  Activation activation;
};

TANDEM_KERNEL_FUNCTION(MatMulFinishFunction)

}  // namespace tandem::cuda
