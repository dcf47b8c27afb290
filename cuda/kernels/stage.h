// Words that come as a kernel's parameters, written to device memory; the host side is stager.h.
#pragma once

#include <cstdint>

#include "cuda/kernel_function.h"

namespace tandem::cuda {

struct StageParams {
  // Parameters have 4096 bytes at most on every device.
  static constexpr int32_t kWords = 1020;

  uint32_t* out;  // in device memory
  int32_t count;
  uint32_t words[kWords];
};
static_assert(sizeof(StageParams) <= 4096);

// out[i] = words[i] for i < count, by one block.
TANDEM_KERNEL_FUNCTION(StageFunction)

}  // namespace tandem::cuda
