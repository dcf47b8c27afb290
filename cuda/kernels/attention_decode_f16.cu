// Decode attention over F16 caches; see attention_decode_mma.h.
#include "cuda/kernels/attention_decode_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction DecodeF16Function(bool many_columns, bool wide, bool variants) {
  return DecodeMmaFunction<F16>("attention decode f16", many_columns, wide, variants);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
