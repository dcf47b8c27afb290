#include "cpu/matmul_kernels.h"

#include <array>

#include "cpu/kernels.h"
#include "cpu/matmul_packed.h"

namespace tandem::cpu {

template <>
KernelList<MatMulArgs> Kernels<MatMulArgs>() {
  static const std::array<Kernel<MatMulArgs>, 28> kernels = {
      AmxPackedMatMul(),
      AmxPairsMatMul(),
      AmxF16MatMul(),
      Int8MatMul(DotIsa::kAvx512Vnni),
      Int8MatMul(DotIsa::kAvxVnni),
      Int8MatMul(DotIsa::kAvx2),
      PairsMatMul(Isa::kAvx512),
      PairsMatMul(Isa::kAvx2),
      OneDnnPairsMatMul(),
      GemvInt8MatMul(DotIsa::kAvx512Vnni),
      GemvInt8MatMul(DotIsa::kAvxVnni),
      GemvInt8MatMul(DotIsa::kAvx2),
      GemvMatMul(Isa::kAvx512),
      GemvMatMul(Isa::kAvx2),
      GemvInt8MatMul(DotIsa::kScalar),
      PairsMatMul(Isa::kScalar),
      GemvMatMul(Isa::kScalar),
      OneDnnPackedMatMul(),
      OneDnnBF16MatMul(),
      AmxBF16MatMul(),
      RowsMatMul(Isa::kAvx512),
      RowsMatMul(Isa::kAvx2),
      OneDnnExpandMatMul(),
      GemmMatMul(Isa::kAvx512),
      GemmMatMul(Isa::kAvx2),
      GemmMatMul(Isa::kScalar),
      Int8MatMul(DotIsa::kScalar),
      ReferenceMatMul(),
  };
  return kernels;
}

}  // namespace tandem::cpu
