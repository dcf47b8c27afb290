// Addresses in shared memory as PTX takes them. Of the wrappers only.
#pragma once

#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET::internal {

#if !TANDEM_CUDA_EMULATED
__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET::internal
