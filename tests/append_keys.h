// Tokens for a KV cache in one piece on the host, the reference of those in two memories.
#pragma once

#include "core/kv_cache.h"
#include "dispatch/ops.h"

namespace tandem {

// Appends k [B, H, T, D] and v [B, H, T, Dv] to `cache`, without rotating them.
inline absl::Status AppendKeys(Context& context, KvCache& cache, const TensorView& k,
                               const TensorView& v) {
  KvAppendArgs args;
  args.k = k;
  args.v = v;
  args.k_cache = cache.k();
  args.v_cache = cache.v();
  args.k_scale = cache.k_scale();
  args.v_scale = cache.v_scale();
  args.position = cache.length();
  if (const absl::Status status = KvAppendInto(context, args); !status.ok()) return status;
  return cache.Advance(k.dim(2));
}

}  // namespace tandem
