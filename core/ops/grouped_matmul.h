// Several matrix products of the same activations: query, key and value projections of an attention
// layer; gate and up projections of a SwiGLU feed-forward layer, with what joins them.
//
//   x_i[m,n] = sum_k a[m,k] * b_i[n,k] + bias_i[n]                    i = 0 .. P - 1
//
//   epilogue none            out_i[m,n] = x_i[m,n]
//   epilogue silu_multiply   out_0[m,n] = silu(x_0[m,n]) * x_1[m,n]   silu(x) = x / (1 + exp(-x))
//
// | name | meaning                                                                     |
// |------|-----------------------------------------------------------------------------|
// | P    | products, 1 to 4; silu_multiply joins exactly two, the gate first           |
// | M    | rows: tokens                                                                |
// | N_i  | output features of product i, its own; with silu_multiply both have as many |
// | K    | input features, the same for all                                            |
//
// Each product is a matrix product of core/ops/matmul.h, with its rules: weights plain, in a block
// format or packed, each of a dtype of its own; sums in f32; activations that may be rounded unless
// float_activations is set. What is won over calling it P times: activations are read, and where a
// kernel rounds them rounded, once; there is one launch, one parallel loop, one end to wait for;
// and silu_multiply writes neither gate nor up. Both are f32 until out is rounded: the bits are
// those of two products with f32 outputs and silu_mul, by the same kernels' loops.
//
// No out may overlap anything else of the call. If a device fails, some outs may be written.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/matmul.h"
#include "core/tensor_view.h"

namespace tandem {

enum class GroupEpilogue : uint8_t { kNone, kSiluMultiply };

struct GroupedMatMulArgs {
  static constexpr OpKind kOp = OpKind::kGroupedMatMul;
  static constexpr int kMaxProducts = 4;

  struct Product {
    TensorView b;     // [N_i, K]  f32, f16, bf16 or a block format; may be absent if b_packed is
                      // given
    TensorView bias;  // [N_i]     optional, f32, f16, bf16
    TensorView out;   // [M, N_i]  f32, f16, bf16; silu_multiply: of the first product only
    const PackedWeights* b_packed = nullptr;  // optional: the same matrix, packed
  };

  TensorView a;  // [M, K]  f32, f16, bf16
  std::array<Product, kMaxProducts> products;
  int num_products = 0;
  GroupEpilogue epilogue = GroupEpilogue::kNone;
  bool float_activations = false;  // a is to be multiplied as it is, whatever the types of b

  bool gated() const { return epilogue == GroupEpilogue::kSiluMultiply; }
  int64_t m() const { return a.dim(0); }
  int64_t k() const { return a.dim(1); }
  // Where the result of product i goes.
  const TensorView& out(int i) const { return products[static_cast<size_t>(gated() ? 0 : i)].out; }
  int64_t n(int i) const { return out(i).dim(1); }
  // Product i alone. With silu_multiply its out is the joint one: right in shape.
  MatMulArgs ProductArgs(int i) const {
    const Product& product = products[static_cast<size_t>(i)];
    MatMulArgs args;
    args.a = a;
    args.b = product.b;
    args.bias = product.bias;
    args.out = out(i);
    args.b_packed = product.b_packed;
    args.float_activations = float_activations;
    return args;
  }
};

absl::Status Validate(const GroupedMatMulArgs& args);

}  // namespace tandem
