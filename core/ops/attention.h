// Scaled dot-product attention over a key/value cache, with grouped query heads.
//
//   s[b,h,i,j] = scale * sum_d q[b,h,i,d] * K[b,g,j,d]                 g = h / (Hq / Hkv)
//   p[b,h,i,:] = softmax over the keys j visible to query i (MaskRule)
//   out[b,h,i,:] = sum_j p[b,h,i,j] * V[b,g,j,:]
//   lse[b,h,i]   = log sum_j exp(s[b,h,i,j])                           natural logarithm
//
// | name      | meaning                                                        |
// |-----------|----------------------------------------------------------------|
// | B         | sequences                                                      |
// | Hq, Hkv   | query heads, key/value heads; Hq % Hkv == 0                    |
// | Sq        | queries per sequence                                           |
// | Skv       | keys in the cache (k, v)                                       |
// | Snew      | keys passed beside the cache (k_new, v_new), positions Skv..   |
// | D, Dv     | head dimension of q and k; of v and out                        |
//
// The key sequence is k followed by k_new: the result is the same as if k_new had been appended
// first. Sums are accumulated in f32 whatever the storage type. Any strides; fast kernels want
// stride 1 in D.
//
// Edge cases. Sq = 0 (or B or Hq = 0): nothing is written. A query that sees no key (also Skv +
// Snew = 0): out = 0, lse = -inf. A NaN in q, or in a visible k or v, makes the row NaN; what is
// masked out or lies in padding is never read into the result. Scores may exceed the range of f16:
// they are f32.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/mask_rule.h"
#include "core/tensor_view.h"

namespace tandem {

struct AttentionArgs {
  static constexpr OpKind kOp = OpKind::kAttention;

  TensorView q;      // [B, Hq, Sq, D]      f32, f16, bf16
  TensorView k;      // [B, Hkv, Skv, D]    f32, f16, bf16
  TensorView v;      // [B, Hkv, Skv, Dv]   dtype of k
  TensorView k_new;  // [B, Hkv, Snew, D]   optional (absent: rank 0), f32, f16, bf16
  TensorView v_new;  // [B, Hkv, Snew, Dv]  present iff k_new is, same dtype
  TensorView out;    // [B, Hq, Sq, Dv]     f32, f16, bf16
  TensorView lse;    // [B, Hq, Sq]         optional, f32

  std::optional<float> scale;  // default 1 / sqrt(D)
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;  // see MaskRule
  int64_t window_right = -1;

  int64_t batch() const { return q.dim(0); }
  int64_t q_heads() const { return q.dim(1); }
  int64_t q_len() const { return q.dim(2); }
  int64_t head_dim() const { return q.dim(3); }
  int64_t kv_heads() const { return k.dim(1); }
  int64_t group() const { return k.dim(1) ? q.dim(1) / k.dim(1) : 0; }  // query heads per kv head
  int64_t cache_len() const { return k.dim(2); }
  int64_t new_len() const { return k_new.present() ? k_new.dim(2) : 0; }
  int64_t kv_len() const { return cache_len() + new_len(); }
  int64_t v_head_dim() const { return v.dim(3); }

  float Scale() const;
  MaskRule Rule() const { return {q_len(), kv_len(), causal, window_left, window_right}; }
};

absl::Status Validate(const AttentionArgs& args);

}  // namespace tandem
