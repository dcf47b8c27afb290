// Prefill attention for head sizes up to 64; see attention_prefill_kernel.h.
#include "cuda/kernels/attention_prefill_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction AttentionPrefill64Function(DType type, bool variants) {
  return AttentionPrefillFunction<64>(type, variants);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
