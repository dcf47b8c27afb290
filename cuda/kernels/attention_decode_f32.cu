// Decode attention over f32 caches; the kernel is in attention_decode_fma.h.
#include "cuda/kernels/attention_decode_fma.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction DecodeF32Function(bool many_columns, bool variants) {
  const char* name = "attention decode f32";
  if (many_columns) return MakeKernelFunction<&DecodeFmaKernel<4, VariantScores>>(name);
  return variants ? MakeKernelFunction<&DecodeFmaKernel<1, VariantScores>>(name)
                  : MakeKernelFunction<&DecodeFmaKernel<1, PlainScores>>(name);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
