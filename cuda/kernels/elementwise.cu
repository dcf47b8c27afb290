// Element-wise kernels: one thread per element in a grid-stride loop; any strides and dtypes. Three
// streams of memory.
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/target.h"
#include "cuda/kernels/elementwise.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

template <typename Combine>
__device__ void ForEachElement(const BinaryParams& p, Combine combine) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.rows * p.columns;
       i += step) {
    const int64_t row = i / p.columns, column = i % p.columns;
    const float a = LoadElement(p.a, row * p.a.strides[0] + column * p.a.strides[1]);
    const float b = LoadElement(p.b, row * p.b.strides[0] + column * p.b.strides[1]);
    StoreElement(p.out, row * p.out.strides[0] + column * p.out.strides[1], combine(a, b));
  }
}

__global__ void AddKernel(const BinaryParams p) {
  ForEachElement(p, [](float a, float b) { return a + b; });
}

__global__ void SiluMulKernel(const BinaryParams p) {
  ForEachElement(p, [](float gate, float up) { return Silu(gate) * up; });
}

}  // namespace

KernelFunction AddFunction() { return MakeKernelFunction<&AddKernel>("add"); }
KernelFunction SiluMulFunction() { return MakeKernelFunction<&SiluMulKernel>("silu_mul"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
