#include "dispatch/streaming_mask.h"

#include <utility>

#include "core/ops/mask.h"
#include "core/status.h"
#include "dispatch/ops.h"

namespace tandem {

absl::StatusOr<StreamingMask> StreamingMask::Create(Context& context, const MaskRule& rule,
                                                    DType dtype, int64_t max_rows,
                                                    int64_t max_columns, Device device) {
  for (const auto& [name, value] :
       {std::pair("max_rows", max_rows), std::pair("max_columns", max_columns)}) {
    if (value < 0 || value > kMaxSequenceLength) {
      return InvalidArgument(name, ": expected 0..2^48, got ", value);
    }
  }
  ContextDevice* where = context.device(device.kind);
  if (where == nullptr || where->backend->device() != device) {
    return InvalidArgument("device: the context has no ", Name(device));
  }
  TANDEM_RETURN_IF_ERROR(ValidateRule("rule.", rule));
  if (rule.q_len > max_rows || rule.kv_len > max_columns) {
    return InvalidArgument("rule: expected at most ", max_rows, " queries and ", max_columns,
                           " keys, got ", rule.q_len, " and ", rule.kv_len);
  }
  StreamingMask mask;
  if (device.kind == DeviceKind::kCpu) mask.allocator_ = MakeHostAllocator();
  Allocator& allocator = mask.allocator_ ? *mask.allocator_ : where->backend->allocator();
  TANDEM_ASSIGN_OR_RETURN(
      mask.memory_,
      Tensor::Allocate(allocator, dtype, {max_rows, MaskColumns(dtype, max_columns)}));
  mask.rule_ = rule;
  mask.max_rows_ = max_rows;
  mask.max_columns_ = max_columns;
  TANDEM_RETURN_IF_ERROR(MaskInto(context, {.rule = rule, .out = mask.view()}));
  return mask;
}

TensorView StreamingMask::ViewOf(const MaskRule& rule) const {
  const TensorView all = memory_.view();
  return Slice(Slice(all, 0, 0, rule.q_len), 1, 0, MaskColumns(all.dtype, rule.kv_len));
}

absl::Status StreamingMask::CheckCapacity(const MaskRule& rule) const {
  if (rule.q_len <= max_rows_ && rule.kv_len <= max_columns_) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("mask: ", rule.q_len, " queries and ",
                                                   rule.kv_len, " keys are beyond its capacity of ",
                                                   max_rows_, " and ", max_columns_));
}

absl::Status StreamingMask::Append(Context& context, int64_t rows, int64_t columns) {
  for (const auto& [name, value] : {std::pair("rows", rows), std::pair("columns", columns)}) {
    if (value < 0 || value > kMaxSequenceLength) {
      return InvalidArgument(name, ": expected 0..2^48, got ", value);
    }
  }
  MaskRule rule = rule_;
  rule.q_len += rows;
  rule.kv_len += columns;
  return Update(context, rule);
}

absl::Status StreamingMask::Update(Context& context, const MaskRule& rule) {
  TANDEM_RETURN_IF_ERROR(ValidateRule("rule.", rule));
  TANDEM_RETURN_IF_ERROR(CheckCapacity(rule));
  TANDEM_RETURN_IF_ERROR(MaskInto(context, {.rule = rule, .out = ViewOf(rule), .previous = rule_}));
  rule_ = rule;
  return absl::OkStatus();
}

}  // namespace tandem
