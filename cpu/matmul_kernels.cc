#include "cpu/matmul_kernels.h"

#include <array>

#include "cpu/kernels.h"

namespace tandem::cpu {

template <>
KernelList<MatMulArgs> Kernels<MatMulArgs>() {
  static const std::array<Kernel<MatMulArgs>, 1> kernels = {
      ReferenceMatMul(),
  };
  return kernels;
}

}  // namespace tandem::cpu
