#include "dispatch/call_shape.h"

#include "dispatch/facts.h"

namespace tandem {

std::string Describe(const CallShape& s) {
  const std::string op(Name(s.op)), input(Name(s.input)), weights(Name(s.weights));
  switch (s.op) {
    case OpKind::kMatMul:
      return absl::StrCat(op, " ", input, " x ", weights, s.packed ? " packed" : "", ", ", s.m,
                          " x ", s.n, " x ", s.k);
    case OpKind::kAttention:
      return absl::StrCat(op, " ", input, " x ", weights, ", ", s.batch > 1 ? "batch " : "",
                          s.batch > 1 ? absl::StrCat(s.batch, ", ") : "", s.q_heads, "/",
                          s.kv_heads, " heads of ", s.head_dim, ", ", s.q_len,
                          s.q_len == 1 ? " query, " : " queries, ", s.kv_len, " keys");
    case OpKind::kMask:
      return absl::StrCat(op, " ", input, ", ", s.q_len, " x ", s.kv_len);
    default:
      return absl::StrCat(op, " ", input, ", ", s.m, " x ", s.n);
  }
}

absl::StatusOr<OpFacts> FactsOf(const CallShape& shape, Device device) {
  OpFacts facts;
  // Views of one address each, which is never read: only shapes are looked at.
  uintptr_t address = 0;
  const auto make = [&](OperandRole, DType dtype, const Shape& dims) -> absl::StatusOr<TensorView> {
    address += uintptr_t{1} << 44;
    const TensorView view =
        MakeView(reinterpret_cast<void*>(address), dtype, dims, device);  // NOLINT
    return view;
  };
  const absl::Status status = WithArgs(shape, make, [&](auto& args) -> absl::Status {
    TANDEM_RETURN_IF_ERROR(Validate(args));
    facts = FactsOf(args);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  facts.packed = shape.packed && shape.op == OpKind::kMatMul;
  return facts;
}

}  // namespace tandem
