// The CUDA thread that is running on this host thread.
#pragma once

#include <cstdint>

namespace tandem::cuda::emulator {

struct Index3 {
  uint32_t x = 0, y = 0, z = 0;
};

struct Thread {
  Index3 thread_index, block_index, block_dim, grid_dim;
};

// Of kernel code only.
Thread& CurrentThread();

}  // namespace tandem::cuda::emulator
