// Key/value cache of one decoder layer, preallocated to a capacity.
//
//   k [B, Hkv, capacity, D]   v [B, Hkv, capacity, Dv]
// An i8 cache also has a f32 scale per token and head (see core/ops/kv_append.h):
//   k_scale, v_scale [B, Hkv, capacity]
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
  int64_t v_head_dim = 0;     // 0: same as head_dim
  DType dtype = DType::kF16;  // f32, f16, bf16, i8
};

class KvCache {
 public:
  // InvalidArgument for bad sizes, ResourceExhausted when out of memory.
  static absl::StatusOr<KvCache> Create(Allocator& allocator, const KvCacheShape& shape);

  int64_t length() const { return length_; }
  int64_t capacity() const { return k_.shape()[2]; }
  int64_t bytes() const;
  bool quantized() const { return k_.dtype() == DType::kI8; }

  // The whole storage, for kv_append.
  const TensorView& k() const { return k_.view(); }
  const TensorView& v() const { return v_.view(); }
  // Absent (rank 0) unless quantized().
  const TensorView& k_scale() const { return k_scale_.view(); }
  const TensorView& v_scale() const { return v_scale_.view(); }
  // The filled part, [B, Hkv, length, D].
  TensorView Keys() const { return Slice(k_.view(), 2, 0, length_); }
  TensorView Values() const { return Slice(v_.view(), 2, 0, length_); }
  // Their scales, [B, Hkv, length]; absent unless quantized().
  TensorView KeyScales() const { return FilledScales(k_scale_); }
  TensorView ValueScales() const { return FilledScales(v_scale_); }

  // Counts `tokens` written behind length() by kv_append. InvalidArgument beyond the capacity.
  absl::Status Advance(int64_t tokens);
  // Forgets everything from position `length` on (0 <= length <= length()).
  absl::Status Truncate(int64_t length);

 private:
  TensorView FilledScales(const Tensor& scale) const {
    return quantized() ? Slice(scale.view(), 2, 0, length_) : TensorView();
  }

  Tensor k_;
  Tensor v_;
  Tensor k_scale_;
  Tensor v_scale_;
  int64_t length_ = 0;
};

}  // namespace tandem
