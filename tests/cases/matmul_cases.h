// Cases of the matrix product (core/ops/matmul.h).
#pragma once

#include <string>
#include <vector>

#include "core/ops/matmul.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"

namespace tandem::cases {

enum class Addend : uint8_t { kNone, kSeparate, kInPlace };
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<Addend> = {"none", "separate",
                                                                       "in_place"};
// How the weights are given.
enum class Weights : uint8_t { kPlain, kPackedBeside, kPackedOnly };
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<Weights> = {"plain", "packed_beside",
                                                                        "packed_only"};

struct MatMulCase {
  using Args = MatMulArgs;

  int64_t m = 1;
  int64_t n = 1;
  int64_t k = 1;
  int64_t batch = 0;         // 0: rank 2
  bool a_broadcast = false;  // batch extent 1 in a
  bool b_broadcast = false;  // batch extent 1 in b
  bool b_is_matrix = false;  // rank 2 b with a rank 3 a
  DType a_dtype = DType::kF32;
  DType b_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  DType extra_dtype = DType::kF32;  // of bias and addend
  bool bias = false;
  Addend addend = Addend::kNone;
  float alpha = 1.0f;
  float beta = 1.0f;
  Activation activation = Activation::kNone;
  Weights weights = Weights::kPlain;
  bool float_activations = true;  // false: they may be rounded to 8 bits if b is quantised
  Layout a_layout = Layout::kContiguous;
  Layout b_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("m", self.m);
    visit("n", self.n);
    visit("k", self.k);
    visit("batch", self.batch);
    visit("a_broadcast", self.a_broadcast);
    visit("b_broadcast", self.b_broadcast);
    visit("b_is_matrix", self.b_is_matrix);
    visit("a_dtype", self.a_dtype);
    visit("b_dtype", self.b_dtype);
    visit("out_dtype", self.out_dtype);
    visit("extra_dtype", self.extra_dtype);
    visit("bias", self.bias);
    visit("addend", self.addend);
    visit("alpha", self.alpha);
    visit("beta", self.beta);
    visit("activation", self.activation);
    visit("weights", self.weights);
    visit("float_activations", self.float_activations);
    visit("a_layout", self.a_layout);
    visit("b_layout", self.b_layout);
    visit("out_layout", self.out_layout);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  MatMulArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const MatMulArgs& args) const;
  std::string DTypeLabel() const;
  std::vector<std::string> PackedOperands() const {
    if (weights == Weights::kPlain) return {};
    return {"b"};
  }

  static std::vector<MatMulCase> Grid(GridSize size);
  static MatMulCase Random(Rng& rng);
};

}  // namespace tandem::cases
