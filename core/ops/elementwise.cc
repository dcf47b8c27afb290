// Validation of the row-wise ops: softmax, rms_norm, silu_mul, add, cast.
#include <cmath>

#include "core/ops/add.h"
#include "core/ops/cast.h"
#include "core/ops/rms_norm.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"
#include "core/status.h"

namespace tandem {
namespace {

absl::Status CheckShapeOf(std::string_view name, const TensorView& view,
                          std::string_view reference_name, const TensorView& reference) {
  if (!(view.shape == reference.shape)) {
    return InvalidArgument(std::string(name), ": expected the shape of ",
                           std::string(reference_name), " ", ToString(reference.shape), ", got ",
                           ToString(view.shape));
  }
  return CheckSameDevice(name, view, reference_name, reference);
}

}  // namespace

absl::Status Validate(const SoftmaxArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("x", args.x, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("out", args.out, "x", args.x));
  if (!std::isfinite(args.scale)) return InvalidArgument("scale: expected a finite number");
  return CheckInPlaceOrDisjoint("out", args.out, "x", args.x);
}

absl::Status Validate(const RmsNormArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("x", args.x));
  if (args.x.rank() > 4) return InvalidArgument("x: expected rank 1..4, got ", args.x.rank());
  TANDEM_RETURN_IF_ERROR(CheckFloat("x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateView("weight", args.weight, 1));
  TANDEM_RETURN_IF_ERROR(CheckFloat("weight", args.weight));
  TANDEM_RETURN_IF_ERROR(CheckDim("weight", args.weight, 0, "normalised extent", args.x.dim(-1)));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("weight", args.weight, "x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, args.x.rank()));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("out", args.out, "x", args.x));
  if (!(args.eps > 0.0f) || !std::isfinite(args.eps)) {
    return InvalidArgument("eps: expected a finite number > 0");
  }
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "weight", args.weight));
  TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint("out", args.out, "x", args.x));
  if (args.residual.present() != args.sum.present()) {
    return InvalidArgument("sum: expected to be given exactly when residual is");
  }
  if (!args.residual.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(ValidateView("residual", args.residual));
  TANDEM_RETURN_IF_ERROR(CheckFloat("residual", args.residual));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("residual", args.residual, "x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("sum", args.sum, args.x.rank()));
  TANDEM_RETURN_IF_ERROR(CheckFloat("sum", args.sum));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("sum", args.sum, "x", args.x));
  TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint("out", args.out, "residual", args.residual));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("sum", args.sum, "out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("sum", args.sum, "weight", args.weight));
  TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint("sum", args.sum, "x", args.x));
  return CheckInPlaceOrDisjoint("sum", args.sum, "residual", args.residual);
}

absl::Status Validate(const SiluMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("gate", args.gate, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("gate", args.gate));
  TANDEM_RETURN_IF_ERROR(ValidateView("up", args.up, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("up", args.up));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("up", args.up, "gate", args.gate));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("out", args.out, "gate", args.gate));
  TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint("out", args.out, "gate", args.gate));
  return CheckInPlaceOrDisjoint("out", args.out, "up", args.up);
}

absl::Status Validate(const AddArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("a", args.a, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("a", args.a));
  TANDEM_RETURN_IF_ERROR(ValidateView("b", args.b, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("b", args.b));
  if (args.b.dim(0) != args.a.dim(0) && args.b.dim(0) != 1) {
    return InvalidArgument("b dimension 0 (rows): expected ", args.a.dim(0), " or 1, got ",
                           args.b.dim(0));
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("b", args.b, 1, "columns", args.a.dim(1)));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("b", args.b, "a", args.a));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("out", args.out, "a", args.a));
  TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint("out", args.out, "a", args.a));
  return CheckInPlaceOrDisjoint("out", args.out, "b", args.b);
}

absl::Status Validate(const CastArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("x", args.x, 2));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 2));
  for (const auto& [name, view] : {std::pair("x", &args.x), std::pair("out", &args.out)}) {
    if (!IsFloat(view->dtype) && !IsBlockQuantized(view->dtype)) {
      return InvalidArgument(name, ": expected a float or block dtype, got ",
                             std::string(Name(view->dtype)));
    }
  }
  if (IsBlockQuantized(args.x.dtype) && args.out.dtype != DType::kF32) {
    return InvalidArgument("out: expected dtype f32 when x is block-quantised, got ",
                           std::string(Name(args.out.dtype)));
  }
  if (IsBlockQuantized(args.out.dtype) && args.x.dtype != DType::kF32) {
    return InvalidArgument("x: expected dtype f32 when out is block-quantised, got ",
                           std::string(Name(args.x.dtype)));
  }
  TANDEM_RETURN_IF_ERROR(CheckShapeOf("out", args.out, "x", args.x));
  return CheckInPlaceOrDisjoint("out", args.out, "x", args.x);
}

}  // namespace tandem
