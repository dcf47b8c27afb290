// Key/value cache of one decoder layer, preallocated to a capacity.
//
//   k [B, Hkv, capacity, D]   v [B, Hkv, capacity, Dv]
// One kv head's keys are contiguous in memory, so that decode streams them. Tokens occupy [0,
// length). Kernels never see this struct: attention gets Keys()/Values(), kv_append gets the whole
// tensors.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/tensor.h"

namespace tandem {

struct KvCacheShape {
  int64_t batch = 1;
  int64_t kv_heads = 0;
  int64_t capacity = 0;  // tokens
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;  // 0: same as head_dim
  DType dtype = DType::kF16;
};

class KvCache {
 public:
  // InvalidArgument for bad sizes, ResourceExhausted when out of memory.
  static absl::StatusOr<KvCache> Create(Allocator& allocator, const KvCacheShape& shape);

  int64_t length() const { return length_; }
  int64_t capacity() const { return k_.shape()[2]; }
  int64_t bytes() const { return k_.buffer()->bytes() + v_.buffer()->bytes(); }

  // The whole storage, for kv_append.
  const TensorView& k() const { return k_.view(); }
  const TensorView& v() const { return v_.view(); }
  // The filled part, [B, Hkv, length, D].
  TensorView Keys() const { return Slice(k_.view(), 2, 0, length_); }
  TensorView Values() const { return Slice(v_.view(), 2, 0, length_); }

  // Counts `tokens` written behind length() by kv_append. InvalidArgument beyond the capacity.
  absl::Status Advance(int64_t tokens);
  // Forgets everything from position `length` on (0 <= length <= length()).
  absl::Status Truncate(int64_t length);

 private:
  Tensor k_;
  Tensor v_;
  int64_t length_ = 0;
};

}  // namespace tandem
