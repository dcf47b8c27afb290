// A block does one row at a time, its threads neighbouring elements: once for the largest magnitude
// (if there are scales), once to convert; the second time the row comes from a cache.
#include <bit>

#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul_round.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

constexpr int kExponent = 14;  // of the largest magnitude of a scaled row

// The exponent of the scale, such that it and its reciprocal are normal numbers.
__device__ int ScaleExponent(float largest) {
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23) - 127;
  return largest == 0.0f ? 0 : exponent - kExponent < -126 ? -126 : exponent - kExponent;
}
__device__ float PowerOfTwo(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

__global__ void __launch_bounds__(kRoundThreads) MatMulRoundKernel(const MatMulRoundParams p) {
  SharedCarver shared;
  float* scratch = MatMulRoundScratch(shared);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t z = row / p.m, m = row % p.m;
    const int64_t begin = z * p.a.strides[0] + m * p.a.strides[1];
    float reciprocal = 1.0f;
    if (p.scales != nullptr) {
      float largest = 0.0f;
      for (int64_t k = threadIdx.x; k < p.k; k += kRoundThreads) {
        const float x = Abs(LoadElement(p.a, begin + k * p.a.strides[2]));
        if (IsFinite(x) && x > largest) largest = x;
      }
      const int exponent = ScaleExponent(BlockMax(largest, scratch));
      reciprocal = PowerOfTwo(-exponent);
      if (threadIdx.x == 0) p.scales[row] = PowerOfTwo(exponent);
    }
    for (int64_t k = threadIdx.x; k < p.k; k += kRoundThreads) {
      StoreElement(p.rounded, row * p.rounded.strides[0] + k,
                   LoadElement(p.a, begin + k * p.a.strides[2]) * reciprocal);
    }
  }
}

}  // namespace

KernelFunction MatMulRoundFunction() {
  return MakeKernelFunction<&MatMulRoundKernel>("matmul_round");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
