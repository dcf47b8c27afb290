// Attention mask creation: the MaskRule written out as a matrix.
//
//   additive (out f32, f16, bf16)  out[i,j] = Visible(i,j) ? 0 : -inf          out [q_len, kv_len]
//   boolean  (out bool)            out[i,j] = Visible(i,j) ? 1 : 0             out [q_len, kv_len]
//   packed   (out u32)             bit j % 32 of out[i, j / 32] = Visible(i,j) out [q_len,
//   ceil(kv_len / 32)]
//
// q_len = 0 or kv_len = 0 writes nothing. Bits beyond kv_len are 0. Rows may be strided, columns
// must not. Written as whole-row fills: each row is at most three runs of one value.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/mask_rule.h"
#include "core/tensor_view.h"

namespace tandem {

struct MaskArgs {
  static constexpr OpKind kOp = OpKind::kMask;

  MaskRule rule;
  TensorView out;  // [q_len, kv_len] or, packed, [q_len, ceil(kv_len / 32)]
};

// Last extent of a mask of this dtype.
inline int64_t MaskColumns(DType dtype, int64_t kv_len) {
  return dtype == DType::kU32 ? kv_len / 32 + (kv_len % 32 != 0) : kv_len;
}

absl::Status Validate(const MaskArgs& args);

// The rule's own consistency; errors name the field as `prefix` + its name.
absl::Status ValidateRule(std::string_view prefix, const MaskRule& rule);

}  // namespace tandem
