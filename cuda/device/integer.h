// Integer instructions of the GPU that C++ has no word for.
#pragma once

#include <cstdint>

#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

#if TANDEM_CUDA_EMULATED

inline int32_t DotProduct4(uint32_t a, uint32_t b, int32_t c) {
  auto sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 32; i += 8) {
    const int32_t product = int32_t{static_cast<int8_t>(a >> i)} * static_cast<int8_t>(b >> i);
    sum += static_cast<uint32_t>(product);
  }
  return static_cast<int32_t>(sum);
}
inline uint32_t FunnelShiftRight(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31u));
}

#else

// c plus the products of the four signed bytes of a and b, modulo 2^32 (dp4a).
__device__ __forceinline__ int32_t DotProduct4(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}
// The lower word of high:low shifted right by shift % 32 bits.
__device__ __forceinline__ uint32_t FunnelShiftRight(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
