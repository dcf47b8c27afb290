// Attention of many queries on compute capability 9.0, head dimension 256: see
// attention_hopper_kernel.h.
#include "cuda/kernels/attention_hopper_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction AttentionHopper256Function(DType dtype, bool variants) {
  return hopper::FunctionOf<256>(dtype, variants, "attention_hopper_256");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
