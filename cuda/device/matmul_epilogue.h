// What ends every kernel of matrix products: core/ops/matmul.h's equation after the sum.
#pragma once

#include "cuda/device/activation.h"
#include "cuda/device/elements.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// The value of one element, from its sum of products; Params as MatMulParams.
template <typename Params>
__device__ inline float EndProduct(const Params& p, int64_t z, int64_t m, int64_t n, float sum) {
  float x = p.alpha * sum;
  if (p.bias.present()) x += LoadFloatElement(p.bias, n * p.bias.strides[0]);
  x = Activate(p.activation, x);
  if (p.addend.present() && p.beta != 0.0f) {
    x += p.beta * LoadFloatElement(p.addend, z * p.addend.strides[0] + m * p.addend.strides[1] +
                                                 n * p.addend.strides[2]);
  }
  return x;
}

template <typename Params>
__device__ inline void FinishProduct(const Params& p, int64_t z, int64_t m, int64_t n, float sum) {
  StoreElement(p.out, z * p.out.strides[0] + m * p.out.strides[1] + n * p.out.strides[2],
               EndProduct(p, z, m, n, sum));
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
