#include "cpu/matmul_kernels.h"

#include <array>

#include "cpu/kernels.h"

namespace tandem::cpu {

template <>
KernelList<MatMulArgs> Kernels<MatMulArgs>() {
  static const std::array<Kernel<MatMulArgs>, 9> kernels = {
      GemvMatMul(Isa::kAvx512), GemvMatMul(Isa::kAvx2),   GemvMatMul(Isa::kScalar),
      OneDnnPackedMatMul(),     OneDnnExpandMatMul(),     GemmMatMul(Isa::kAvx512),
      GemmMatMul(Isa::kAvx2),   GemmMatMul(Isa::kScalar), ReferenceMatMul(),
  };
  return kernels;
}

}  // namespace tandem::cpu
