// Index of the largest element of each row; the first of equals. NaN is never chosen unless the
// whole row is NaN (then index 0).
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct ArgMaxArgs {
  static constexpr OpKind kOp = OpKind::kArgMax;

  TensorView x;    // [R, N]  f32, f16, bf16; 1 <= N < 2^31
  TensorView out;  // [R]     i32
};

absl::Status Validate(const ArgMaxArgs& args);

}  // namespace tandem
