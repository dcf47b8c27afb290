#include "core/ops/mask.h"

#include <string>
#include <utility>

#include "core/status.h"

namespace tandem {

absl::Status ValidateRule(std::string_view prefix, const MaskRule& rule) {
  const std::string name(prefix);
  for (const auto& [field, value] :
       {std::pair("q_len", rule.q_len), std::pair("kv_len", rule.kv_len),
        std::pair("keys_before", rule.keys_before), std::pair("keys_after", rule.keys_after)}) {
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

namespace {

// One number per sequence.
absl::Status CheckList(const char* name, const TensorView& list, const MaskArgs& args,
                       int64_t largest) {
  if (!list.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(ValidateView(name, list, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType(name, list, DType::kI32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, list, "out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckDim(name, list, 0, "batch", args.batch()));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, name, list));
  if (list.device.kind != DeviceKind::kCpu) return absl::OkStatus();
  for (int64_t b = 0; b < list.dim(0); ++b) {
    const int64_t value = *list.At<int32_t>(b * list.stride(0));
    if (value < 0 || value > largest) {
      return InvalidArgument(name, "[", b, "]: expected 0..", largest, ", got ", value);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOut(const MaskArgs& args) {
  const TensorView& out = args.out;
  const bool batched = out.rank() == 4;
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", out, batched ? 4 : 2));
  if (!IsFloat(out.dtype) && out.dtype != DType::kBool && out.dtype != DType::kU32) {
    return InvalidArgument("out: expected dtype f32, f16, bf16, bool or u32 (packed), got ",
                           std::string(Name(out.dtype)));
  }
  if (batched) TANDEM_RETURN_IF_ERROR(CheckDim("out", out, 1, "heads", 1));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", out, batched ? 2 : 0, "rows", args.num_rows()));
  TANDEM_RETURN_IF_ERROR(
      CheckDim("out", out, batched ? 3 : 1, "columns", MaskColumns(out.dtype, args.rule.kv_len)));
  if (out.dim(-1) > 1 && out.stride(-1) != 1) {
    return InvalidArgument("out stride ", out.rank() - 1, ": expected 1, got ", out.stride(-1));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const MaskArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateRule("rule.", args.rule));
  if (args.first_row < 0 || args.first_row > args.rule.q_len) {
    return InvalidArgument("first_row: expected 0..q_len (", args.rule.q_len, "), got ",
                           args.first_row);
  }
  if (args.rows < -1 || args.rows > args.rule.q_len - args.first_row) {
    return InvalidArgument("rows: expected -1..q_len - first_row (",
                           args.rule.q_len - args.first_row, "), got ", args.rows);
  }
  TANDEM_RETURN_IF_ERROR(CheckOut(args));
  if (args.ragged() && args.out.rank() != 4) {
    return InvalidArgument("out: expected rank 4 with q_lens, kv_lens or kv_starts, got ",
                           args.out.rank());
  }
  if (args.kv_lens.present() && (args.rule.keys_before > 0 || args.rule.keys_after > 0)) {
    return InvalidArgument("kv_lens: not together with rule.keys_before or rule.keys_after");
  }
  TANDEM_RETURN_IF_ERROR(CheckList("q_lens", args.q_lens, args, args.rule.q_len));
  TANDEM_RETURN_IF_ERROR(CheckList("kv_lens", args.kv_lens, args, args.rule.kv_len));
  TANDEM_RETURN_IF_ERROR(CheckList("kv_starts", args.kv_starts, args, INT32_MAX));
  if (!args.previous) return absl::OkStatus();
  if (args.ragged()) {
    return InvalidArgument("previous: not together with q_lens, kv_lens or kv_starts");
  }
  return ValidateRule("previous.", *args.previous);
}

}  // namespace tandem
