// Attention mask creation: the MaskRule written out as a matrix, or, for a batch, one matrix per
// sequence.
//
//   additive (out f32, f16, bf16)  out[b,0,i,j] = Visible_b(i,j) ? 0 : -inf
//   boolean  (out bool)            out[b,0,i,j] = Visible_b(i,j) ? 1 : 0
//   packed   (out u32)             bit j % 32 of out[b,0,i,j / 32] = Visible_b(i,j)
//
// | name    | meaning                                                                          |
// |---------|----------------------------------------------------------------------------------|
// | B       | sequences; out of rank 2 is one sequence, [rows, columns]                        |
// | rows    | a band of the rule's rows: out row i is row first_row + i of q_len               |
// | columns | kv_len, or ceil(kv_len / 32) for the packed form; bits beyond kv_len are 0       |
//
// Constructors of the usual rules are in core/ops/mask_patterns.h.
//
// Batches. Sequence b has q_lens[b] queries and kv_lens[b] keys: positions are counted with these,
// rows beyond q_lens[b] and columns beyond kv_lens[b] (padding on the right) are hidden. The first
// kv_starts[b] keys (padding on the left) are hidden too; positions count them. Same meaning as in
// core/ops/attention.h. What is not given is the rule's for all sequences. The mask of a part of
// the keys (rule.keys_before, rule.keys_after) takes no kv_lens.
//
// Extension in place. With `previous`, out already holds the mask of that rule: in all cells that
// the two masks share (same row, same column). Only those cells are written whose value differs,
// and the new ones. For a buffer with room to grow pass views with its strides; see
// dispatch/streaming_mask.h. A cell of the packed form is a word.
//
// No rows, columns or sequences: nothing is written. Rows may be strided, columns must not.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/mask_rule.h"
#include "core/tensor_view.h"

namespace tandem {

struct MaskArgs {
  static constexpr OpKind kOp = OpKind::kMask;

  MaskRule rule = {};   // of a batch: q_len and kv_len are the most of any sequence
  TensorView out = {};  // [rows, columns] or [B, 1, rows, columns]
  int64_t first_row = 0;
  int64_t rows = -1;          // -1: all from first_row on
  TensorView q_lens = {};     // [B]  optional, i32, 0..q_len; these three: out of rank 4
  TensorView kv_lens = {};    // [B]  optional, i32, 0..kv_len
  TensorView kv_starts = {};  // [B]  optional, i32, >= 0; instead of rule.kv_begin
  std::optional<MaskRule> previous = {};  // not with q_lens, kv_lens or kv_starts

  int64_t num_rows() const { return rows >= 0 ? rows : rule.q_len - first_row; }
  int64_t batch() const { return out.rank() == 4 ? out.dim(0) : 1; }
  bool ragged() const { return q_lens.present() || kv_lens.present() || kv_starts.present(); }
  // The rule of sequence b. Reads q_lens etc., which must be in host memory. Rows from its q_len on
  // are hidden (see VisibleKeys).
  MaskRule Sequence(int64_t b) const {
    const auto entry = [b](const TensorView& list) {
      return int64_t{*list.At<int32_t>(b * list.stride(0))};
    };
    MaskRule sequence = rule;
    if (q_lens.present()) sequence.q_len = entry(q_lens);
    if (kv_lens.present()) sequence.kv_len = entry(kv_lens);
    if (kv_starts.present()) sequence.kv_begin = entry(kv_starts);
    return sequence;
  }
};

// The range of keys that row q shows, also of rows that the sequence does not have.
TANDEM_HOST_DEVICE inline KeyRange VisibleKeys(const MaskRule& sequence, int64_t q) {
  return q < sequence.q_len ? sequence.Range(q) : KeyRange{0, 0};
}

// Where a row of one rule differs from the same row of another: the keys in one of two ranges and
// not in the other are at most two ranges (one of them may be empty).
struct KeyRangePair {
  KeyRange first;
  KeyRange second;
};
TANDEM_HOST_DEVICE inline KeyRangePair Differences(KeyRange a, KeyRange b) {
  if (a.end <= b.begin || b.end <= a.begin) return {a, b};  // nothing in common
  return {{a.begin < b.begin ? a.begin : b.begin, a.begin < b.begin ? b.begin : a.begin},
          {a.end < b.end ? a.end : b.end, a.end < b.end ? b.end : a.end}};
}

// Last extent of a mask of this dtype.
inline int64_t MaskColumns(DType dtype, int64_t kv_len) {
  return dtype == DType::kU32 ? kv_len / 32 + (kv_len % 32 != 0) : kv_len;
}

absl::Status Validate(const MaskArgs& args);

// The rule's own consistency; errors name the field as `prefix` + its name.
absl::Status ValidateRule(std::string_view prefix, const MaskRule& rule);

}  // namespace tandem
