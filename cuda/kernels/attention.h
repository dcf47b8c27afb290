// Attention on the device; see core/ops/attention.h.
#pragma once

#include "core/ops/mask_rule.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/device_list_view.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kAttentionThreads = 128;

struct AttentionParams {
  DeviceTensor q, k, v, k_new, v_new, out, lse;
  DeviceTensor alibi_slopes, bias, mask, sinks, k_scale,
      v_scale;  // bias, mask: broadcast = stride 0
  float scale, softcap, inverse_softcap;
  MaskRule rule;      // of a sequence without lengths of its own; kv_len counts new keys
  int64_t sequences;  // B
  int64_t cache_len;  // of a sequence without a length of its own
  int64_t new_len;
  Divisor rows, heads;  // extents of q
  Divisor group;        // query heads per key/value head
  bool packed;          // q_offsets is given
  DeviceList q_lens, q_offsets, kv_lens, kv_starts;
  DeviceTable page_table;
  bool paged;
  Divisor page_size;
};

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
