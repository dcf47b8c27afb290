// Weights of attention where they pass through memory or between lanes.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// 2^e, -126 <= e <= 127.
__device__ inline float PowerOfTwo(int e) {
  return std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23);
}

// The weight of a hidden key is -0, that of a visible one never.
__device__ inline bool IsHiddenWeight(float w) { return std::bit_cast<uint32_t>(w) == 0x80000000u; }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
