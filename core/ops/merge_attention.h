// Attention over a sequence of keys from attention over its parts: split caches, a cache in two
// memories, keys shared by many sequences.
//
//   lse[b,h,i]   = log(sum_p exp(lse_parts[p][b,h,i]))
//   out[b,h,i,:] = sum_p exp(lse_parts[p][b,h,i] - lse[b,h,i]) * out_parts[p][b,h,i,:]
//
// | name      | meaning                                               |
// |-----------|-------------------------------------------------------|
// | P         | parts, at least one                                   |
// | B, Hq, Sq | as in attention; packed queries have B = 1            |
// | Dv        | head dimension of v                                   |
//
// The parts are what attention (core/ops/attention.h) wrote for disjoint sets of keys and the same
// queries; the result is attention over all of them. Sinks belong to one part only.
//
// Exact: the largest lse is subtracted before any exponential. lse_parts[p] = -inf says that the
// part saw no key: it contributes nothing, whatever its out holds. Where every part is empty, out =
// 0 and lse = -inf. A NaN in a part's lse, or in the out of a part that saw keys, reaches the
// result. Any strides; parts may differ in dtype. In place: out may be one of out_parts, and lse
// one of lse_parts.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct MergeAttentionArgs {
  static constexpr OpKind kOp = OpKind::kMergeAttention;

  std::span<const TensorView> out_parts;  // P x [B, Hq, Sq, Dv]  f32, f16, bf16
  std::span<const TensorView> lse_parts;  // P x [B, Hq, Sq]      f32
  TensorView out;                         // [B, Hq, Sq, Dv]      f32, f16, bf16
  TensorView lse;                         // [B, Hq, Sq]          optional, f32

  int64_t parts() const { return static_cast<int64_t>(out_parts.size()); }
};

absl::Status Validate(const MergeAttentionArgs& args);

}  // namespace tandem
