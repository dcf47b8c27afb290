// Words that came as parameters, written to memory: one block, one thread per word in a loop.
// Reads the constant bank that holds the parameters, writes 4 bytes per word.
#include <cstddef>

#include "cuda/device/target.h"
#include "cuda/kernels/stage.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void StageKernel(const __grid_constant__ StageParams p) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.count;
       i += static_cast<int32_t>(blockDim.x)) {
    p.out[i] = p.words[i];
  }
}

}  // namespace

KernelFunction StageFunction() {
  KernelFunction function = MakeKernelFunction<&StageKernel>("stage");
  function.address_bytes = offsetof(StageParams, count);  // numbers follow
  return function;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
