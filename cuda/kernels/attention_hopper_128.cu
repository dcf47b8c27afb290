// Attention of many queries on compute capability 9.0, head dimension 128: see
// attention_hopper_kernel.h.
#include "cuda/kernels/attention_hopper_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction AttentionHopper128Function(DType dtype, bool variants) {
  return hopper::FunctionOf<128>(dtype, variants, "attention_hopper_128");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
