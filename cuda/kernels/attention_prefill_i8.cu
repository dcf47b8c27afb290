// Prefill attention of int8 keys with queries of f32 (`prefill_i8`); see
// attention_prefill_kernel.h. Integers are f16 as they are: the scale of a key is multiplied into
// its scores, that of a value into its weights. Queries and weights are the sums of two f16 numbers
// each, relative to powers of two, so that errors are those of f32 but for 2^-22.
#include "cuda/kernels/attention_prefill_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction AttentionPrefillI8Function(int dim) {
  switch (dim) {
    case 64:
      return MakeKernelFunction<&AttentionPrefillKernel<F16, 64, true, true>>(
          "attention_prefill_i8");
    case 128:
      return MakeKernelFunction<&AttentionPrefillKernel<F16, 128, true, true>>(
          "attention_prefill_i8");
    default:
      return MakeKernelFunction<&AttentionPrefillKernel<F16, 256, true, true>>(
          "attention_prefill_i8");
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
