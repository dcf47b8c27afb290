// Attention on the device, the kernel `generic`; see core/ops/attention.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/attention_params.h"

namespace tandem::cuda {

inline constexpr int kAttentionThreads = 128;

// One block per row of q, in a loop over rows. Shared memory: AttentionShared.
TANDEM_KERNEL_FUNCTION(AttentionFunction)

// What a block keeps in shared memory; Carver is SharedCarver or SharedBytes.
struct AttentionShared {
  float* q;        // [D]
  float* acc;      // [Dv]
  float* weights;  // [kAttentionThreads]
  float* scratch;  // one number per warp
};
template <typename Carver>
TANDEM_HOST_DEVICE inline AttentionShared CarveAttention(Carver& carver, int64_t head_dim,
                                                         int64_t v_head_dim) {
  AttentionShared shared;
  shared.q = carver.template Take<float>(head_dim);
  shared.acc = carver.template Take<float>(v_head_dim);
  shared.weights = carver.template Take<float>(kAttentionThreads);
  shared.scratch = carver.template Take<float>(32);
  return shared;
}

}  // namespace tandem::cuda
