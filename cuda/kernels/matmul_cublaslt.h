// Matrix products by the device's BLAS library; see core/ops/matmul.h and cuda/blas/blas.h.
#pragma once

#include "core/kernel.h"
#include "core/ops/matmul.h"

namespace tandem::cuda {

absl::Status CublasLtSupports(const KernelContext& context, const MatMulArgs& args);
int64_t CublasLtWorkspaceBytes(const KernelContext& context, const MatMulArgs& args);
absl::Status RunCublasLt(const KernelContext& context, const MatMulArgs& args);
// Types that it takes at all.
bool CublasLtApplies(const MatMulArgs& args);

}  // namespace tandem::cuda
