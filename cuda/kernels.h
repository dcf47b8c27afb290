// The CUDA device's kernel lists, one per op: fastest first, a plain generic kernel last. This and
// backend.h are all that dispatch/ sees of CUDA. The lists are the same for a GPU and for the
// emulated device, and for builds without the CUDA toolkit (which have the emulated device only).
//
// An op gains its list by a specialisation here, as in cpu/kernels.h; without one it has no
// kernels.
#pragma once

#include "core/kernel.h"
#include "core/ops/add.h"

namespace tandem::cuda {

template <typename Args>
KernelList<Args> Kernels() {
  return {};
}

template <>
KernelList<AddArgs> Kernels<AddArgs>();

}  // namespace tandem::cuda
