// Single products: matmul_gemv_kernel.h.
#include "cuda/kernels/matmul_gemv_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction GemvVectorFunction(DType weights, int rows) {
  return DispatchFloat(weights,
                       [&]<typename W>() { return GemvVectorOfRows<W, MatMulParams>(rows); });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
