// Matrix product with a weight-shaped right operand, and everything a decoder layer fuses to it.
//
//   out[z,m,n] = act( alpha * sum_k a[z,m,k] * b[z,n,k] + bias[n] ) + beta * addend[z,m,n]
//
// | name | meaning                                                                |
// |------|------------------------------------------------------------------------|
// | Z    | batch; 1 in a or b broadcasts (stride 0 is not needed)                 |
// | M    | rows: tokens                                                           |
// | N    | output features                                                        |
// | K    | input features; K = 0 gives act(bias) + beta * addend                  |
//
// b holds one row per output feature, as weights do in model files; a [K, N] matrix is passed as
// its transposed view. A block-quantised b (q8_0, q4_k, ...) has its blocks along K and is
// multiplied without expanding the whole matrix. Unless float_activations is set, a kernel may
// round activations (docs/numerics.md): for such a b to 8 bits, else to the type of b. Sums are
// accumulated in f32 (products of integers within a block exactly). bias, addend and out are
// converted from and to f32 once. addend may be out itself (C = alpha * A * B + beta * C); out must
// not overlap a, b or bias. beta = 0 (no addend): out is written without being read.
#pragma once

#include <algorithm>
#include <string_view>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/matmul_activation.h"
#include "core/tensor_view.h"

namespace tandem {

// Weights in one backend's own layout, made once by that backend (see PackWeights in
// dispatch/ops.h). Opaque here; a kernel recognises its own by `format`.
class PackedWeights {
 public:
  virtual ~PackedWeights() = default;
  virtual std::string_view format() const = 0;
  virtual int64_t bytes() const = 0;
  DType dtype = DType::kF32;  // of the weights that were packed
  Device device;
  int64_t n = 0;
  int64_t k = 0;
};

struct MatMulArgs {
  static constexpr OpKind kOp = OpKind::kMatMul;

  TensorView a;       // [M, K] or [Z, M, K]    f32, f16, bf16
  TensorView b;       // [N, K] or [Z|1, N, K]  f32, f16, bf16 or a block format; may be absent if
                      // b_packed is given
  TensorView bias;    // [N]                    optional, f32, f16, bf16
  TensorView addend;  // shape of out           optional, f32, f16, bf16
  TensorView out;     // [M, N] or [Z, M, N]    f32, f16, bf16; same rank as a
  const PackedWeights* b_packed = nullptr;  // optional: the same matrix, packed (rank 2)

  float alpha = 1.0f;
  float beta = 1.0f;  // factor of addend
  Activation activation = Activation::kNone;
  bool float_activations = false;  // a is to be multiplied as it is, whatever the type of b

  int64_t batch() const { return a.rank() == 3 ? std::max(a.dim(0), out.dim(0)) : 1; }
  int64_t m() const { return out.dim(-2); }
  int64_t n() const { return out.dim(-1); }
  int64_t k() const { return a.dim(-1); }
};

absl::Status Validate(const MatMulArgs& args);

}  // namespace tandem
