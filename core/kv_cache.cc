#include "core/kv_cache.h"

#include "core/status.h"

namespace tandem {

absl::StatusOr<KvCache> KvCache::Create(Allocator& allocator, const KvCacheShape& shape) {
  if (!IsFloat(shape.dtype) && shape.dtype != DType::kI8) {
    return InvalidArgument("dtype: expected f32, f16, bf16 or i8, got ",
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
  if (shape.dtype == DType::kI8) {
    const Shape scales = {shape.batch, shape.kv_heads, shape.capacity};
    TANDEM_ASSIGN_OR_RETURN(cache.k_scale_, Tensor::Allocate(allocator, DType::kF32, scales));
    TANDEM_ASSIGN_OR_RETURN(cache.v_scale_, Tensor::Allocate(allocator, DType::kF32, scales));
  }
  return cache;
}

int64_t KvCache::bytes() const {
  int64_t bytes = 0;
  for (const Tensor* tensor : {&k_, &v_, &k_scale_, &v_scale_}) {
    if (tensor->buffer() != nullptr) bytes += tensor->buffer()->bytes();
  }
  return bytes;
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
