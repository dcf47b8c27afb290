#include "core/ops/attention.h"

#include <cmath>

#include "core/status.h"

namespace tandem {
namespace {

// Broadcast views may claim any length; half the bound each keeps cache and new keys within it.
absl::Status CheckLength(const char* name, const TensorView& view, const char* meaning) {
  if (view.dim(2) <= kMaxSequenceLength / 2) return absl::OkStatus();
  return InvalidArgument(name, " dimension 2 (", meaning, "): expected <= 2^47, got ", view.dim(2));
}

}  // namespace

float AttentionArgs::Scale() const {
  if (scale) return *scale;
  const int64_t d = head_dim();
  return d > 0 ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))) : 1.0f;
}

absl::Status Validate(const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("q", args.q, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("k", args.k, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("v", args.v, 4));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 4));
  for (const auto& [name, view] : {std::pair("q", &args.q), std::pair("k", &args.k),
                                   std::pair("v", &args.v), std::pair("out", &args.out)}) {
    TANDEM_RETURN_IF_ERROR(CheckFloat(name, *view));
  }
  TANDEM_RETURN_IF_ERROR(CheckDType("v", args.v, args.k.dtype));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("k", args.k, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v", args.v, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "q", args.q));

  const int64_t batch = args.q.dim(0), q_heads = args.q.dim(1), kv_heads = args.k.dim(1);
  if (kv_heads == 0 ? q_heads != 0 : q_heads % kv_heads != 0) {
    return InvalidArgument("q dimension 1 (query heads): expected a multiple of the ", kv_heads,
                           " key/value heads of k, got ", q_heads);
  }
  if (args.q.dim(3) == 0) return InvalidArgument("q dimension 3 (head_dim): expected >= 1, got 0");
  TANDEM_RETURN_IF_ERROR(CheckLength("q", args.q, "queries"));
  TANDEM_RETURN_IF_ERROR(CheckLength("k", args.k, "keys"));
  TANDEM_RETURN_IF_ERROR(CheckDim("k", args.k, 0, "batch", batch));
  TANDEM_RETURN_IF_ERROR(CheckDim("k", args.k, 3, "head_dim", args.q.dim(3)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 0, "batch", batch));
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 1, "key/value heads", kv_heads));
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 2, "keys", args.k.dim(2)));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 0, "batch", batch));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 1, "query heads", q_heads));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 2, "queries", args.q.dim(2)));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 3, "v head_dim", args.v.dim(3)));

  if (args.k_new.present() != args.v_new.present()) {
    return InvalidArgument("v_new: expected to be given exactly when k_new is");
  }
  if (args.k_new.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateView("k_new", args.k_new, 4));
    TANDEM_RETURN_IF_ERROR(ValidateView("v_new", args.v_new, 4));
    TANDEM_RETURN_IF_ERROR(CheckFloat("k_new", args.k_new));
    TANDEM_RETURN_IF_ERROR(CheckDType("v_new", args.v_new, args.k_new.dtype));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("k_new", args.k_new, "q", args.q));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("v_new", args.v_new, "q", args.q));
    TANDEM_RETURN_IF_ERROR(CheckDim("k_new", args.k_new, 0, "batch", batch));
    TANDEM_RETURN_IF_ERROR(CheckDim("k_new", args.k_new, 1, "key/value heads", kv_heads));
    TANDEM_RETURN_IF_ERROR(CheckDim("k_new", args.k_new, 3, "head_dim", args.q.dim(3)));
    TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 0, "batch", batch));
    TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 1, "key/value heads", kv_heads));
    TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 2, "keys", args.k_new.dim(2)));
    TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 3, "v head_dim", args.v.dim(3)));
    TANDEM_RETURN_IF_ERROR(CheckLength("k_new", args.k_new, "keys"));
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "k_new", args.k_new));
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "v_new", args.v_new));
  }
  if (args.lse.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateOutput("lse", args.lse, 3));
    TANDEM_RETURN_IF_ERROR(CheckDType("lse", args.lse, DType::kF32));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("lse", args.lse, "q", args.q));
    TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, 0, "batch", batch));
    TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, 1, "query heads", q_heads));
    TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, 2, "queries", args.q.dim(2)));
    for (const auto& [name, view] :
         {std::pair("q", &args.q), std::pair("k", &args.k), std::pair("v", &args.v),
          std::pair("out", &args.out), std::pair("k_new", &args.k_new),
          std::pair("v_new", &args.v_new)}) {
      if (view->present()) TANDEM_RETURN_IF_ERROR(CheckNoOverlap("lse", args.lse, name, *view));
    }
  }
  if (args.causal > Causal::kTopLeft) {
    return InvalidArgument("causal: unknown value ", static_cast<int>(args.causal));
  }
  if (args.window_left < -1) {
    return InvalidArgument("window_left: expected >= -1, got ", args.window_left);
  }
  if (args.window_right < -1) {
    return InvalidArgument("window_right: expected >= -1, got ", args.window_right);
  }
  if (args.scale && !std::isfinite(*args.scale)) {
    return InvalidArgument("scale: expected a finite number");
  }
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "v", args.v));
  return absl::OkStatus();
}

}  // namespace tandem
