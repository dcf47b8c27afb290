// Several products of the same activations: matmul_int8_dot_kernel.h.
#include "cuda/kernels/matmul_int8_dot_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction GroupedInt8DotFunction(DType weights, int rows) {
  return DispatchBlock(weights, [&]<typename Block>() {
    return Int8DotOfRows<Block, GroupParams<Int8MatMulParams>>(rows);
  });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
