#include "core/ops/mask.h"

#include <string>
#include <utility>

#include "core/status.h"

namespace tandem {

absl::Status ValidateRule(std::string_view prefix, const MaskRule& rule) {
  const std::string name(prefix);
  for (const auto& [field, value] :
       {std::pair("q_len", rule.q_len), std::pair("kv_len", rule.kv_len)}) {
    if (value < 0 || value > kMaxSequenceLength) {
      return InvalidArgument(name, field, ": expected 0..2^48, got ", value);
    }
  }
  if (rule.causal > Causal::kTopLeft) {
    return InvalidArgument(name, "causal: unknown value ", static_cast<int>(rule.causal));
  }
  for (const auto& [field, value] :
       {std::pair("window_left", rule.window_left), std::pair("window_right", rule.window_right)}) {
    if (value < -1) return InvalidArgument(name, field, ": expected >= -1, got ", value);
  }
  for (const auto& [field, value] :
       {std::pair("chunk", rule.chunk), std::pair("prefix_len", rule.prefix_len),
        std::pair("kv_begin", rule.kv_begin)}) {
    if (value < 0) return InvalidArgument(name, field, ": expected >= 0, got ", value);
  }
  return absl::OkStatus();
}

absl::Status Validate(const MaskArgs& args) {
  const MaskRule& rule = args.rule;
  TANDEM_RETURN_IF_ERROR(ValidateRule("rule.", rule));
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
