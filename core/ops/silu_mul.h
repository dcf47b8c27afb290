// Gated activation of a SwiGLU feed-forward layer.
//
//   out[...] = silu(gate[...]) * up[...]          silu(x) = x / (1 + exp(-x))
//
// f32 arithmetic. out may be gate or up.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct SiluMulArgs {
  static constexpr OpKind kOp = OpKind::kSiluMul;

  TensorView gate;  // [R, N]  f32, f16, bf16
  TensorView up;    // [R, N]  f32, f16, bf16
  TensorView out;   // [R, N]  f32, f16, bf16
};

absl::Status Validate(const SiluMulArgs& args);

}  // namespace tandem
