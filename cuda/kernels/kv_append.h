// Writing new keys and values into a cache, on the device; see core/ops/kv_append.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/device_list_view.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/lookup.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline constexpr int kKvAppendThreads = 128;

struct KvAppendParams {
  DeviceTensor k, v, k_cache, v_cache, k_scale, v_scale, q, q_out;
  int64_t position;
  int64_t capacity;  // rows per sequence
  DeviceList cache_lens;
  DeviceTable page_table;
  Divisor heads, tokens, q_heads, queries;  // extents of k and of q
  Divisor page_size;
  RotationParams rotation;  // of k and q
};

// One block per row of keys, values and queries, in a loop over rows.
TANDEM_KERNEL_FUNCTION(KvAppendFunction)
// One block of kVectorThreads per token, in a loop over tokens.
TANDEM_KERNEL_FUNCTION(KvAppendVectorFunction)

}  // namespace tandem::cuda
