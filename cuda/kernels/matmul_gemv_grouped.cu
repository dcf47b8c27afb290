// Several products of the same activations: matmul_gemv_kernel.h.
#include "cuda/kernels/matmul_gemv_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction GroupedGemvVectorFunction(DType weights, int rows) {
  return DispatchFloat(
      weights, [&]<typename W>() { return GemvVectorOfRows<W, GroupParams<MatMulParams>>(rows); });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
