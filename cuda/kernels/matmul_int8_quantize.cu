// Activations to 8 bits, for kernels that multiply them many times. Eight threads per block of 32
// elements; a block of threads does 1024 elements of one row at a time. Reads every element once.
#include "cuda/device/quantize_activations.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void __launch_bounds__(kInt8QuantizeThreads)
    Int8QuantizeKernel(const Int8QuantizeParams p) {
  constexpr int64_t kBlocks = kInt8QuantizeThreads / 8;
  for (int64_t r = blockIdx.x; r < p.batch * p.padded_m; r += gridDim.x) {
    const int64_t z = r / p.padded_m, m = r - z * p.padded_m;
    const int64_t row = z * p.a.strides[0] + m * p.a.strides[1];
    const int64_t group = r / p.columns, column = r - group * p.columns;
    for (int64_t first = blockIdx.y * kBlocks; first < p.blocks; first += gridDim.y * kBlocks) {
      const int64_t b = first + threadIdx.x / 8;
      const bool stored = b < p.blocks;
      QuantizeBlock(p.a, row, b, stored && m < p.m, stored, p.to,
                    (group * p.blocks + b) * p.columns + column, p.scaled_sums);
    }
  }
}

}  // namespace

KernelFunction Int8QuantizeFunction() {
  return MakeKernelFunction<&Int8QuantizeKernel>("int8_quantize");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
