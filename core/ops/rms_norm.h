// Root-mean-square normalisation of rows (Zhang & Sennrich 2019).
//
//   out[r,n] = x[r,n] / sqrt(mean_n(x[r,n]^2) + eps) * weight[n]
//
// With a residual the sum is normalised, and written too: the bits of Add followed by RmsNorm of
// its result,
//   sum[r,n] = x[r,n] + residual[r,n]      out[r,:] = norm(sum[r,:])
//
// Statistics in f32. For per-head norms (qwen3) pass x as [tokens * heads, head_dim] or any rank up
// to 4 whose last dimension is normalised. out may be x or residual; sum may be the other of them.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct RmsNormArgs {
  static constexpr OpKind kOp = OpKind::kRmsNorm;

  TensorView x;         // [..., N] rank 1..4   f32, f16, bf16
  TensorView weight;    // [N]                  f32, f16, bf16
  TensorView out;       // shape of x           f32, f16, bf16
  TensorView residual;  // shape of x          optional, f32, f16, bf16
  TensorView sum;       // shape of x          iff residual, f32, f16, bf16
  float eps = 1e-5f;    // > 0
};

absl::Status Validate(const RmsNormArgs& args);

}  // namespace tandem
