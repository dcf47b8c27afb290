#include "core/kv_cache.h"

#include "core/status.h"

namespace tandem {

absl::StatusOr<KvCache> KvCache::Create(Allocator& allocator, const KvCacheShape& shape) {
  if (!IsFloat(shape.dtype)) {
    return InvalidArgument("dtype: expected f32, f16 or bf16, got ",
                           std::string(Name(shape.dtype)));
  }
  if (shape.batch < 1 || shape.kv_heads < 1 || shape.capacity < 1 || shape.head_dim < 1 ||
      shape.v_head_dim < 0) {
    return InvalidArgument("KV cache: batch, kv_heads, capacity and head_dim must be >= 1, got ",
                           shape.batch, ", ", shape.kv_heads, ", ", shape.capacity, ", ",
                           shape.head_dim);
  }
  const int64_t v_head_dim = shape.v_head_dim ? shape.v_head_dim : shape.head_dim;
  KvCache cache;
  TANDEM_ASSIGN_OR_RETURN(
      cache.k_, Tensor::Allocate(allocator, shape.dtype,
                                 {shape.batch, shape.kv_heads, shape.capacity, shape.head_dim}));
  TANDEM_ASSIGN_OR_RETURN(
      cache.v_, Tensor::Allocate(allocator, shape.dtype,
                                 {shape.batch, shape.kv_heads, shape.capacity, v_head_dim}));
  return cache;
}

absl::Status KvCache::Advance(int64_t tokens) {
  if (tokens < 0 || tokens > capacity() - length_) {
    return InvalidArgument("tokens: expected 0..", capacity() - length_,
                           " (free places in the KV cache), got ", tokens);
  }
  length_ += tokens;
  return absl::OkStatus();
}

absl::Status KvCache::Truncate(int64_t length) {
  if (length < 0 || length > length_) {
    return InvalidArgument("length: expected 0..", length_, ", got ", length);
  }
  length_ = length;
  return absl::OkStatus();
}

}  // namespace tandem
