// Decode attention over int8 caches; see attention_decode_mma.h.
#include "cuda/kernels/attention_decode_kernel.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

KernelFunction DecodeI8Function(bool many_columns, bool wide, bool variants) {
  return DecodeMmaFunction<int8_t>("attention decode i8", many_columns, wide, variants);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
