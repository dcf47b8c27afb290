// Conversion between element types, including quantisation to and dequantisation from block
// formats.
//
//   out[r,n] = convert(x[r,n])
//
// f32, f16 and bf16 round to nearest even; overflow gives infinity. To block formats, by GGUF's
// reference quantisers, whose bytes other tools produce (layouts: core/dtype.h):
//   q8_0        d = max|x| / 127, q = round(x / d)
//   q4_0        d = x* / -8 with x* the element of largest magnitude, q = min(15, trunc(x / d +
//               8.5))
//   q4_k, q5_k  per sub-block the scale and minimum of least squared error weighted by rms(x) +
//               |x|, of the best of 22 or 17 roundings; both quantised to 6 bits of the largest
//   q6_k        per sub-block the scale of least squared error weighted by x^2, of the best of 19
//               roundings; quantised to 8 bits of the largest
//   tq2_0       d = max|x|, q = round(x / d) + 1
// At least one side is f32 when the other is a block type.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct CastArgs {
  static constexpr OpKind kOp = OpKind::kCast;

  TensorView x;    // [R, N]  f32, f16, bf16 or a block format
  TensorView out;  // [R, N]  f32, f16, bf16 or a block format
};

absl::Status Validate(const CastArgs& args);

}  // namespace tandem
