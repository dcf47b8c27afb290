// Writes new keys and values into a cache, converting to its storage type.
//
//   k_cache[b,h,position + s,:] = k[b,h,s,:]         v_cache likewise
//
// position + S must not exceed the capacity. Nothing else in the cache is touched.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct KvAppendArgs {
  static constexpr OpKind kOp = OpKind::kKvAppend;

  TensorView k;        // [B, H, S, D]         f32, f16, bf16
  TensorView v;        // [B, H, S, Dv]        f32, f16, bf16
  TensorView k_cache;  // [B, H, capacity, D]  f32, f16, bf16
  TensorView v_cache;  // [B, H, capacity, Dv] dtype of k_cache
  int64_t position = 0;
};

absl::Status Validate(const KvAppendArgs& args);

}  // namespace tandem
