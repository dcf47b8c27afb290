// Row softmax over the last dimension.
//
//   out[...,n] = exp(scale * x[...,n] - max) / sum_n exp(scale * x[...,n] - max)
//
// Stable (running maximum), f32 arithmetic. A row of only -inf gives zeros; NaN makes its row NaN.
// In place allowed.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct SoftmaxArgs {
  static constexpr OpKind kOp = OpKind::kSoftmax;

  TensorView x;    // [R, N]  f32, f16, bf16
  TensorView out;  // [R, N]  f32, f16, bf16
  float scale = 1.0f;
};

absl::Status Validate(const SoftmaxArgs& args);

}  // namespace tandem
