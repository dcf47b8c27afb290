// The words of CUDA C++ that kernel sources use, for the host compiler.
#pragma once

#include "cuda/emulator/thread.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__

#define threadIdx (::tandem::cuda::emulator::CurrentThread().thread_index)
#define blockIdx (::tandem::cuda::emulator::CurrentThread().block_index)
#define blockDim (::tandem::cuda::emulator::CurrentThread().block_dim)
#define gridDim (::tandem::cuda::emulator::CurrentThread().grid_dim)
