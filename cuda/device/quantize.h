// One element's quant, for the kernels that quantise: as cpu/blocks.h.
#pragma once

#include "cuda/device/math.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// What is not a number in the range becomes `otherwise`.
__device__ inline int ToIntegerOr(float x, float low, float high, int otherwise) {
  return x >= low && x <= high ? static_cast<int>(x) : otherwise;
}

// -127 .. 127; `inverse` is that of the scale.
__device__ inline int QuantizeQ8_0(float x, float inverse) {
  return ToIntegerOr(RoundAwayFromZero(Multiply(x, inverse)), -127.0f, 127.0f, 0);
}
// 0 .. 15
__device__ inline int QuantizeQ4_0(float x, float inverse) {
  const int q = ToIntegerOr(MultiplyAdd(x, inverse, 8.5f), 0.0f, 17.0f, 8);
  return q < 15 ? q : 15;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
