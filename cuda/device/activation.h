// The activation functions of core/ops/matmul_activation.h.
#pragma once

#include "core/ops/matmul_activation.h"
#include "cuda/device/math.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

__device__ inline float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return Silu(x);
    case Activation::kGelu: {
      constexpr float kSqrt2OverPi = 0.79788456080286536f;
      return 0.5f * x * (1.0f + Tanh(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
    }
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays NaN
    default:
      return x;
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
