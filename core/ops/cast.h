// Conversion between element types, including quantisation to and dequantisation from block
// formats.
//
//   out[r,n] = convert(x[r,n])
//
// f32, f16 and bf16 round to nearest even; overflow gives infinity. To q8_0: per 32 elements d =
// max|x| / 127, q = round(x / d). To q4_0: d = x* / -8 with x* the element of largest magnitude, q
// = min(15, trunc(x / d + 8.5)). These are GGUF's reference quantisers: the bytes equal those of
// other tools. At least one side is f32 when the other is a block type.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct CastArgs {
  static constexpr OpKind kOp = OpKind::kCast;

  TensorView x;    // [R, N]  f32, f16, bf16, q8_0, q4_0
  TensorView out;  // [R, N]  f32, f16, bf16, q8_0, q4_0
};

absl::Status Validate(const CastArgs& args);

}  // namespace tandem
