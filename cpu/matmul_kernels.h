// The MatMul kernels of the CPU, as list entries; matmul_kernels.cc puts them in order.
#pragma once

#include "core/kernel.h"
#include "core/ops/matmul.h"

namespace tandem::cpu {

Kernel<MatMulArgs> ReferenceMatMul();

}  // namespace tandem::cpu
