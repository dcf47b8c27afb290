// The arguments of an attention call as kernels see them; see core/ops/attention.h for what they
// mean. Shared by all attention kernels.
#pragma once

#include "core/ops/mask_rule.h"
#include "cuda/kernels/device_list_view.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

struct AttentionParams {
  DeviceTensor q, k, v, k_new, v_new, out, lse;
  DeviceTensor alibi_slopes, bias, mask, sinks, k_scale,
      v_scale;  // bias, mask: broadcast = stride 0
  float scale, softcap, inverse_softcap;
  MaskRule rule;       // of a sequence without lengths of its own; kv_len counts new keys
  int64_t sequences;   // B
  int64_t cache_len;   // rows of the cache at hand: k's, or those that the page table has
  int64_t cache_rows;  // of the whole cache, of which they may be a part
  int64_t new_len;
  int64_t new_after;
  Divisor rows, heads;  // extents of q
  Divisor group;        // query heads per key/value head
  bool packed;          // q_offsets is given
  DeviceList q_lens, q_offsets, kv_lens, kv_starts;
  DeviceTable page_table;
  bool paged;
  Divisor page_size;
};

}  // namespace tandem::cuda
