// A mask that grows with a sequence: memory for a largest size, of which a part is in use. Growing
// writes the cells that differ from before and the new ones, in place; nothing is built anew.
//
//   auto mask = StreamingMask::Create(context, CausalMask(prompt, prompt), DType::kF32, 4096,
//   4096); while (...) {
//     mask->Append(context, 1, 1);  // one token: a row and a column
//     AttentionInto(context, {..., .bias = ... mask->view() ...});
//   }
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/device.h"
#include "core/ops/mask_rule.h"
#include "core/tensor.h"
#include "dispatch/context.h"

namespace tandem {

class StreamingMask {
 public:
  // The mask of `rule`, with room for `max_rows` queries and `max_columns` keys. In the memory of
  // `device`, which the context must have; a mask in device memory must not outlive the context.
  // InvalidArgument: a bad rule or dtype, or a rule beyond the capacity. ResourceExhausted.
  static absl::StatusOr<StreamingMask> Create(Context& context, const MaskRule& rule, DType dtype,
                                              int64_t max_rows, int64_t max_columns,
                                              Device device = {});

  // `rows` more queries and `columns` more keys, positions as the rule says: with
  // Causal::kBottomRight the last query sees the last key again. ResourceExhausted beyond the
  // capacity; after an error nothing has changed.
  absl::Status Append(Context& context, int64_t rows, int64_t columns);
  // Any other rule within the capacity; longer, shorter or of another pattern.
  absl::Status Update(Context& context, const MaskRule& rule);

  const MaskRule& rule() const { return rule_; }
  int64_t max_rows() const { return max_rows_; }
  int64_t max_columns() const { return max_columns_; }
  // [q_len, kv_len], or packed [q_len, ceil(kv_len / 32)]; its rows have the stride of the
  // capacity. Valid until the next change.
  TensorView view() const { return ViewOf(rule_); }

 private:
  StreamingMask() = default;
  TensorView ViewOf(const MaskRule& rule) const;
  absl::Status CheckCapacity(const MaskRule& rule) const;

  std::shared_ptr<Allocator> allocator_;  // of memory_, if that is in host memory
  Tensor memory_;                         // [max_rows, columns of max_columns]
  MaskRule rule_;
  int64_t max_rows_ = 0;
  int64_t max_columns_ = 0;
};

}  // namespace tandem
