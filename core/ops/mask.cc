#include "core/ops/mask.h"

#include "core/status.h"

namespace tandem {

absl::Status Validate(const MaskArgs& args) {
  const MaskRule& rule = args.rule;
  if (rule.q_len < 0 || rule.q_len > kMaxSequenceLength) {
    return InvalidArgument("rule.q_len: expected 0..2^48, got ", rule.q_len);
  }
  if (rule.kv_len < 0 || rule.kv_len > kMaxSequenceLength) {
    return InvalidArgument("rule.kv_len: expected 0..2^48, got ", rule.kv_len);
  }
  if (rule.causal > Causal::kTopLeft) {
    return InvalidArgument("rule.causal: unknown value ", static_cast<int>(rule.causal));
  }
  if (rule.window_left < -1 || rule.window_right < -1) {
    return InvalidArgument("rule.window_left, rule.window_right: expected >= -1, got ",
                           rule.window_left, ", ", rule.window_right);
  }
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 2));
  if (!IsFloat(args.out.dtype) && args.out.dtype != DType::kBool && args.out.dtype != DType::kU32) {
    return InvalidArgument("out: expected dtype f32, f16, bf16, bool or u32 (packed), got ",
                           std::string(Name(args.out.dtype)));
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 0, "q_len", rule.q_len));
  TANDEM_RETURN_IF_ERROR(
      CheckDim("out", args.out, 1, "columns", MaskColumns(args.out.dtype, rule.kv_len)));
  if (args.out.dim(1) > 1 && args.out.stride(1) != 1) {
    return InvalidArgument("out stride 1: expected 1, got ", args.out.stride(1));
  }
  return absl::OkStatus();
}

}  // namespace tandem
