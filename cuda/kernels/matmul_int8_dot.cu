// Single products: matmul_int8_dot_kernel.h.
#include "cuda/kernels/matmul_int8_dot_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction Int8DotFunction(DType weights, int rows) {
  return DispatchBlock(
      weights, [&]<typename Block>() { return Int8DotOfRows<Block, Int8MatMulParams>(rows); });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
