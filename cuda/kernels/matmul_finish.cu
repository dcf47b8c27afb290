// Bias, activation and addend of a product in f32, and its rounding to the type of out.
//
// A block does 1024 columns of one row at a time, its threads neighbouring elements: each element
// of the product, the addend and out moves once, and memory bounds it.
#include "cuda/device/activation.h"
#include "cuda/device/elements.h"
#include "cuda/device/target.h"
#include "cuda/kernels/matmul_finish.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void __launch_bounds__(kFinishThreads) MatMulFinishKernel(const MatMulFinishParams p) {
  const int64_t pieces = (p.n + kFinishColumns - 1) / kFinishColumns;
  for (int64_t i = blockIdx.x; i < p.batch * p.m * pieces; i += gridDim.x) {
    const int64_t row = i / pieces, begin = i % pieces * kFinishColumns;
    const int64_t z = row / p.m, m = row % p.m;
    const int64_t end = begin + kFinishColumns < p.n ? begin + kFinishColumns : p.n;
    const float* product = p.product + row * p.product_row_stride;
    const float scale = p.scales == nullptr ? 1.0f : p.scales[z * p.scales_batch_stride + m];
    for (int64_t n = begin + threadIdx.x; n < end; n += kFinishThreads) {
      float x = product[n] * scale;
      if (p.bias.present()) x += LoadElement(p.bias, n * p.bias.strides[0]);
      x = Activate(p.activation, x);
      if (p.addend.present()) {
        x += p.beta * LoadElement(p.addend, z * p.addend.strides[0] + m * p.addend.strides[1] +
                                                n * p.addend.strides[2]);
      }
      StoreElement(p.out, z * p.out.strides[0] + m * p.out.strides[1] + n * p.out.strides[2], x);
    }
  }
}

}  // namespace

KernelFunction MatMulFinishFunction() {
  return MakeKernelFunction<&MatMulFinishKernel>("matmul_finish");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
