// Validation of the ops that look up by index: embedding, argmax, sample.
#include <cmath>

#include "core/ops/argmax.h"
#include "core/ops/embedding.h"
#include "core/ops/sample.h"
#include "core/status.h"

namespace tandem {
namespace {

absl::Status CheckVocabulary(std::string_view name, const TensorView& view) {
  if (view.dim(1) < 1 || view.dim(1) > INT32_MAX) {
    return InvalidArgument(std::string(name), " dimension 1: expected 1..2^31-1, got ",
                           view.dim(1));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const EmbeddingArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("table", args.table, 2));
  if (!IsFloat(args.table.dtype) && !IsBlockQuantized(args.table.dtype)) {
    return InvalidArgument("table: expected a float or block dtype, got ",
                           std::string(Name(args.table.dtype)));
  }
  TANDEM_RETURN_IF_ERROR(ValidateView("ids", args.ids, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType("ids", args.ids, DType::kI32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("ids", args.ids, "table", args.table));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 0, "ids", args.ids.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 1, "embedding extent", args.table.dim(1)));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "table", args.table));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "ids", args.ids));
  return CheckNoOverlap("out", args.out, "table", args.table);
}

absl::Status Validate(const ArgMaxArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("x", args.x, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("x", args.x));
  TANDEM_RETURN_IF_ERROR(CheckVocabulary("x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType("out", args.out, DType::kI32));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 0, "rows", args.x.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "x", args.x));
  return CheckNoOverlap("out", args.out, "x", args.x);
}

absl::Status Validate(const SampleArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("logits", args.logits, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("logits", args.logits));
  TANDEM_RETURN_IF_ERROR(CheckVocabulary("logits", args.logits));
  TANDEM_RETURN_IF_ERROR(ValidateView("uniform", args.uniform, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType("uniform", args.uniform, DType::kF32));
  TANDEM_RETURN_IF_ERROR(CheckDim("uniform", args.uniform, 0, "rows", args.logits.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("uniform", args.uniform, "logits", args.logits));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType("out", args.out, DType::kI32));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 0, "rows", args.logits.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "logits", args.logits));
  if (!(args.temperature >= 0.0f) || !std::isfinite(args.temperature)) {
    return InvalidArgument("temperature: expected a finite number >= 0");
  }
  if (args.top_k < 0) return InvalidArgument("top_k: expected >= 0, got ", args.top_k);
  if (!(args.top_p > 0.0f && args.top_p <= 1.0f)) {
    return InvalidArgument("top_p: expected a number in (0, 1]");
  }
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "uniform", args.uniform));
  return CheckNoOverlap("out", args.out, "logits", args.logits);
}

}  // namespace tandem
