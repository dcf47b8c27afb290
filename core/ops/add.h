// Element-wise sum.
//
//   out[r,n] = a[r,n] + b[r,n]          b may be [1, N] (or a view with stride 0): broadcast over
//   rows
//
// f32 arithmetic. out may be a or b.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct AddArgs {
  static constexpr OpKind kOp = OpKind::kAdd;

  TensorView a;    // [R, N]       f32, f16, bf16
  TensorView b;    // [R|1, N]     f32, f16, bf16
  TensorView out;  // [R, N]       f32, f16, bf16
};

absl::Status Validate(const AddArgs& args);

}  // namespace tandem
