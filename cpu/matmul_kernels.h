// The MatMul kernels of the CPU, as list entries; matmul_kernels.cc puts them in order.
#pragma once

#include "core/kernel.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/matmul.h"
#include "cpu/isa.h"

namespace tandem::cpu {

enum class DotIsa : uint8_t;

Kernel<MatMulArgs> AmxPackedMatMul();
Kernel<MatMulArgs> AmxPairsMatMul();
Kernel<MatMulArgs> AmxBF16MatMul();
Kernel<MatMulArgs> AmxF16MatMul();
Kernel<MatMulArgs> Int8MatMul(DotIsa isa);
Kernel<MatMulArgs> GemvMatMul(Isa isa);
Kernel<MatMulArgs> GemvInt8MatMul(DotIsa isa);
Kernel<MatMulArgs> PairsMatMul(Isa isa);
Kernel<MatMulArgs> RowsMatMul(Isa isa);  // kAvx512 or kAvx2
Kernel<MatMulArgs> OneDnnPackedMatMul();
Kernel<MatMulArgs> OneDnnPairsMatMul();
Kernel<MatMulArgs> OneDnnBF16MatMul();
Kernel<MatMulArgs> OneDnnExpandMatMul();
Kernel<MatMulArgs> GemmMatMul(Isa isa);
Kernel<MatMulArgs> ReferenceMatMul();

// The same drivers over several products (grouped_matmul.cc).
Kernel<GroupedMatMulArgs> GroupedInt8MatMul(DotIsa isa);
Kernel<GroupedMatMulArgs> GroupedGemvMatMul(Isa isa);
Kernel<GroupedMatMulArgs> GroupedGemvInt8MatMul(DotIsa isa);
Kernel<GroupedMatMulArgs> GroupedPairsMatMul(Isa isa);

}  // namespace tandem::cpu
