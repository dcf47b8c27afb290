#include "core/ops/matmul.h"

#include <cmath>

#include "core/status.h"

namespace tandem {

absl::Status Validate(const MatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("a", args.a));
  const int rank = args.a.rank();
  if (rank != 2 && rank != 3) return InvalidArgument("a: expected rank 2 or 3, got ", rank);
  TANDEM_RETURN_IF_ERROR(CheckFloat("a", args.a));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, rank));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "a", args.a));
  if (!args.b.present() && args.b_packed == nullptr) {
    return InvalidArgument("b: expected a matrix or b_packed, got neither");
  }
  if (args.b.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateView("b", args.b));
    if (args.b.rank() != 2 && args.b.rank() != rank) {
      return InvalidArgument("b: expected rank 2 or ", rank, ", got ", args.b.rank());
    }
    if (!IsFloat(args.b.dtype) && !IsBlockQuantized(args.b.dtype)) {
      return InvalidArgument("b: expected a float or block dtype, got ",
                             std::string(Name(args.b.dtype)));
    }
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("b", args.b, "a", args.a));
    TANDEM_RETURN_IF_ERROR(CheckDim("b", args.b, args.b.rank() - 2, "output features N", args.n()));
    TANDEM_RETURN_IF_ERROR(CheckDim("b", args.b, args.b.rank() - 1, "input features K", args.k()));
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "b", args.b));
  }
  if (args.b_packed != nullptr) {
    if (rank != 2) return InvalidArgument("b_packed: expected a of rank 2, got ", rank);
    if (args.b_packed->n != args.n() || args.b_packed->k != args.k()) {
      return InvalidArgument("b_packed: expected [", args.n(), ", ", args.k(), "], got [",
                             args.b_packed->n, ", ", args.b_packed->k, "]");
    }
    if (args.b_packed->device != args.a.device) {
      return InvalidArgument("b_packed is on ", Name(args.b_packed->device), " but a is on ",
                             Name(args.a.device));
    }
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, rank - 2, "rows M", args.a.dim(-2)));
  if (rank == 3) {
    const int64_t batch = args.out.dim(0);
    if (args.a.dim(0) != batch && args.a.dim(0) != 1) {
      return InvalidArgument("a dimension 0 (batch): expected ", batch, " or 1, got ",
                             args.a.dim(0));
    }
    if (args.b.rank() == 3 && args.b.dim(0) != batch && args.b.dim(0) != 1) {
      return InvalidArgument("b dimension 0 (batch): expected ", batch, " or 1, got ",
                             args.b.dim(0));
    }
  }
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "a", args.a));
  if (args.bias.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateView("bias", args.bias, 1));
    TANDEM_RETURN_IF_ERROR(CheckFloat("bias", args.bias));
    TANDEM_RETURN_IF_ERROR(CheckDim("bias", args.bias, 0, "output features N", args.n()));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("bias", args.bias, "a", args.a));
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "bias", args.bias));
  }
  if (args.addend.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateView("addend", args.addend, rank));
    TANDEM_RETURN_IF_ERROR(CheckFloat("addend", args.addend));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("addend", args.addend, "a", args.a));
    for (int i = 0; i < rank; ++i) {
      TANDEM_RETURN_IF_ERROR(CheckDim("addend", args.addend, i, "shape of out", args.out.dim(i)));
    }
    TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint("out", args.out, "addend", args.addend));
  }
  if (!std::isfinite(args.alpha)) return InvalidArgument("alpha: expected a finite number");
  if (!std::isfinite(args.beta)) return InvalidArgument("beta: expected a finite number");
  if (args.activation > Activation::kRelu) {
    return InvalidArgument("activation: unknown value ", static_cast<int>(args.activation));
  }
  return absl::OkStatus();
}

}  // namespace tandem
