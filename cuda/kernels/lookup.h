// Ops that move or convert elements: core/ops/rope.h, core/ops/embedding.h, core/ops/cast.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

// How a row is rotated, shared by rope and kv_append (core/ops/rope.h). Positions have stride 0
// over sequences if they are the same for all.
struct RotationParams {
  const int32_t* positions = nullptr;  // nullptr: no rotation
  int64_t sequence_stride = 0, token_stride = 0;
  const float* inv_freq = nullptr;
  int64_t inv_freq_stride = 0;
  int64_t pairs = 0;
  bool half = false;
  float magnitude = 1.0f;
};

struct RopeParams {
  DeviceTensor x, out;  // [B, H, S, D]
  RotationParams rotation;
};
struct EmbeddingParams {
  DeviceTensor table, ids, out;  // [V, N], [S], [S, N]
};
struct CastParams {
  DeviceTensor x, out;  // [R, N]
  int64_t rows, columns;
};

TANDEM_KERNEL_FUNCTION(RopeFunction)
TANDEM_KERNEL_FUNCTION(EmbeddingFunction)
// To f32, f16 or bf16 from anything; to q8_0 and q4_0.
TANDEM_KERNEL_FUNCTION(CastFunction, DType out)

// Vector forms, for rows that begin on 16 bytes, in blocks of kVectorThreads. Rotation: one block
// per token, all of whose dimensions are rotated. Casts to or from q8_0 and q4_0: one run of
// blocks.
TANDEM_KERNEL_FUNCTION(RopeVectorFunction)
TANDEM_KERNEL_FUNCTION(EmbeddingVectorFunction)
TANDEM_KERNEL_FUNCTION(CastVectorFunction, DType x, DType out)

}  // namespace tandem::cuda
