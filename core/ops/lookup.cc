// Validation of the ops that read or write by index: embedding, kv_append, argmax, sample.
#include <cmath>

#include "core/ops/argmax.h"
#include "core/ops/embedding.h"
#include "core/ops/kv_append.h"
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
    return InvalidArgument("table: expected dtype f32, f16, bf16, q8_0 or q4_0, got ",
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

absl::Status Validate(const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("k", args.k, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("v", args.v, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckFloat("v", args.v));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("k_cache", args.k_cache, 4));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("v_cache", args.v_cache, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("k_cache", args.k_cache));
  TANDEM_RETURN_IF_ERROR(CheckDType("v_cache", args.v_cache, args.k_cache.dtype));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v", args.v, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("k_cache", args.k_cache, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v_cache", args.v_cache, "k", args.k));
  for (int axis : {0, 1}) {
    const std::string_view meaning = axis == 0 ? "batch" : "key/value heads";
    TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, axis, meaning, args.k.dim(axis)));
    TANDEM_RETURN_IF_ERROR(CheckDim("k_cache", args.k_cache, axis, meaning, args.k.dim(axis)));
    TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, axis, meaning, args.k.dim(axis)));
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 2, "new tokens", args.k.dim(2)));
  TANDEM_RETURN_IF_ERROR(CheckDim("k_cache", args.k_cache, 3, "head_dim", args.k.dim(3)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, 3, "v head_dim", args.v.dim(3)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, 2, "capacity", args.k_cache.dim(2)));
  if (args.position < 0 || args.position > args.k_cache.dim(2) - args.k.dim(2)) {
    return InvalidArgument("position: expected 0..capacity - new tokens = ",
                           args.k_cache.dim(2) - args.k.dim(2), ", got ", args.position);
  }
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("k_cache", args.k_cache, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("k_cache", args.k_cache, "v", args.v));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("v_cache", args.v_cache, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("v_cache", args.v_cache, "v", args.v));
  return CheckNoOverlap("v_cache", args.v_cache, "k_cache", args.k_cache);
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
