// The CUDA device's kernel lists, one per op: fastest first. This and backend.h are all that
// dispatch/ sees of CUDA.
//
// No op has a CUDA kernel yet: every list is empty, and the registry reports that nothing accepts.
// An op gains one by a specialisation here, as in cpu/kernels.h.
#pragma once

#include "core/kernel.h"

namespace tandem::cuda {

template <typename Args>
KernelList<Args> Kernels() {
  return {};
}

}  // namespace tandem::cuda
