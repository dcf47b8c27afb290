// Up to 8 rows by weights in f32, f16 or bf16, at the speed of memory; see core/ops/matmul.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/matmul.h"
#include "cuda/kernels/matmul_group.h"

namespace tandem::cuda {

inline constexpr int kGemvVectorWarps = 8;
inline constexpr int kGemvVectorMaxRows = 8;

// Rows of weights that a warp does together, sharing what it loads of a: `rows` (1, 2, 4, 8) of it.
constexpr int GemvVectorTogether(int rows) { return rows == 1 ? 1 : rows == 8 ? 4 : 2; }

// Rows that the kernel for `m` of them is made for.
constexpr int GemvVectorRows(int64_t m) { return m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8; }

// MatMulParams; weights: f32, f16, bf16.
TANDEM_KERNEL_FUNCTION(GemvVectorFunction, DType weights, int rows)
// GroupParams<MatMulParams>; every product with weights of that type.
TANDEM_KERNEL_FUNCTION(GroupedGemvVectorFunction, DType weights, int rows)

}  // namespace tandem::cuda
