// Quantisation to the formats of 256 elements (core/ops/cast.h): q4_k, q5_k, q6_k, tq2_0.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/lookup.h"

namespace tandem::cuda {

inline constexpr int kQuantizeKThreads = 128;

// Shared memory of a block of threads; Carver is SharedCarver or SharedBytes. Per warp: 32
// sub-blocks of at most 32 elements, padded by one, and the quants of 4 blocks.
inline constexpr int kQuantizeKWarpFloats = 32 * 33;
inline constexpr int kQuantizeKWarpQuants = 4 * 256;
struct QuantizeKShared {
  float* x;
  uint8_t* q;
};
template <typename Carver>
TANDEM_HOST_DEVICE inline QuantizeKShared CarveQuantizeK(Carver& carver) {
  constexpr int kWarps = kQuantizeKThreads / 32;
  QuantizeKShared shared;
  shared.x = carver.template Take<float>(kWarps * kQuantizeKWarpFloats);
  shared.q = carver.template Take<uint8_t>(kWarps * kQuantizeKWarpQuants);
  return shared;
}

// A warp does 4 blocks of q4_k or q5_k at a time, 2 of q6_k, 1 of tq2_0.
TANDEM_KERNEL_FUNCTION(QuantizeKFunction, DType out)

}  // namespace tandem::cuda
