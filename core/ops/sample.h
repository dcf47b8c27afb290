// Draws one token per row of logits: temperature, then top-k, then top-p, then inverse-CDF
// sampling.
//
//   p = softmax(logits / temperature)
//   keep the top_k most probable (0: all); of those the smallest set, most probable first, whose
//   probabilities (renormalised over the top-k set) sum to >= top_p (1: all; always at least one)
//   out = first kept token, in order of falling probability (ties: lower index first), at which the
//   running sum of the
//         renormalised probabilities exceeds uniform
//
// The randomness is an argument: the same uniform gives the same token on every device. temperature
// = 0 is greedy (argmax) and ignores the rest. NaN logits are never drawn; a row of only NaN or
// -inf gives index 0.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct SampleArgs {
  static constexpr OpKind kOp = OpKind::kSample;

  TensorView logits;         // [R, N]  f32, f16, bf16; 1 <= N < 2^31
  TensorView uniform;        // [R]     f32 in [0, 1); host or device as logits
  TensorView out;            // [R]     i32
  float temperature = 1.0f;  // >= 0
  int64_t top_k = 0;         // 0: no limit
  float top_p = 1.0f;        // (0, 1]
};

absl::Status Validate(const SampleArgs& args);

}  // namespace tandem
