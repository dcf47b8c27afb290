// Element-wise sum: one thread per element in a grid-stride loop; any strides and dtypes. Three
// streams of memory.
#include "cuda/device/target.h"
#include "cuda/kernels/add.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

template <typename A, typename B, typename Out>
__global__ void AddKernel(const AddParams p) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.rows * p.columns;
       i += step) {
    const int64_t row = i / p.columns, column = i % p.columns;
    const float a = ToFloat(p.a.As<A>()[row * p.a.strides[0] + column * p.a.strides[1]]);
    const float b = ToFloat(p.b.As<B>()[row * p.b.strides[0] + column * p.b.strides[1]]);
    p.out.As<Out>()[row * p.out.strides[0] + column * p.out.strides[1]] = FromFloat<Out>(a + b);
  }
}

}  // namespace

KernelFunction AddFunction(DType a, DType b, DType out) {
  return DispatchFloat(a, [&]<typename A>() {
    return DispatchFloat(b, [&]<typename B>() {
      return DispatchFloat(
          out, [&]<typename Out>() { return MakeKernelFunction<&AddKernel<A, B, Out>>("add"); });
    });
  });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
