// Matrix products on the device; see core/ops/matmul.h.
#pragma once

#include "core/ops/matmul_activation.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kMatMulTile = 16;    // rows and columns of out per block
inline constexpr int kMatMulTileK = 32;   // of K at a time
inline constexpr int kGemvThreads = 128;  // 4 warps: 4 columns of out
inline constexpr int kGemvMaxRows = 4;

struct MatMulParams {
  // Rank 3, [Z, ...]; what is broadcast has stride 0. Of a block format: strides in elements, whole
  // blocks.
  DeviceTensor a, b, bias, addend, out;
  int64_t batch, m, n, k;
  float alpha, beta;
  Activation activation;
};

// Tiles of kMatMulTile x kMatMulTile, one block of as many threads each.
TANDEM_KERNEL_FUNCTION(MatMulTileFunction)
// One warp per column of out, for at most kGemvMaxRows rows.
TANDEM_KERNEL_FUNCTION(GemvFunction)

}  // namespace tandem::cuda
