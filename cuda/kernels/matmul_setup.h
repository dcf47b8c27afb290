// The host side of matrix products: arguments as kernels take them, and the kernels that stand in
// files of their own, for the list in matmul.cc.
#pragma once

#include "core/kernel.h"
#include "core/ops/matmul.h"
#include "cuda/kernels/matmul.h"
#include "cuda/kernels/matmul_int8.h"

namespace tandem::cuda {

MatMulParams ToMatMulParams(const MatMulArgs& args);

// Unimplemented if a block of the context's device cannot have so much shared memory.
absl::Status CheckSharedBytes(const KernelContext& context, int64_t needed);

bool GemvVectorApplies(const MatMulArgs& args);
absl::Status GemvVectorSupports(const KernelContext& context, const MatMulArgs& args);
absl::Status RunGemvVector(const KernelContext& context, const MatMulArgs& args);

// Weights that the kernels with activations of 8 bits take at all.
bool Int8Applies(const MatMulArgs& args);
bool Int8DotApplies(const MatMulArgs& args);
absl::Status Int8DotSupports(const KernelContext& context, const MatMulArgs& args);
Int8MatMulParams ToInt8Params(const MatMulArgs& args);
int64_t Int8DotSharedBytes(DType weights, int64_t rows, int64_t k);
absl::Status RunInt8Dot(const KernelContext& context, const MatMulArgs& args);
absl::Status Int8MmaSupports(const KernelContext& context, const MatMulArgs& args);
int64_t Int8MmaWorkspaceBytes(const KernelContext& context, const MatMulArgs& args);
absl::Status RunInt8Mma(const KernelContext& context, const MatMulArgs& args);

bool ExpandedApplies(const MatMulArgs& args);
absl::Status ExpandedSupports(const KernelContext& context, const MatMulArgs& args);
int64_t ExpandedWorkspaceBytes(const KernelContext& context, const MatMulArgs& args);
absl::Status RunExpanded(const KernelContext& context, const MatMulArgs& args);

}  // namespace tandem::cuda
