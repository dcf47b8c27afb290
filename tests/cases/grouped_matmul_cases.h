// Cases of grouped matrix products (core/ops/grouped_matmul.h).
#pragma once

#include <string>
#include <vector>

#include "core/ops/grouped_matmul.h"
#include "tests/cases/matmul_cases.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"

namespace tandem::cases {

template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<GroupEpilogue> = {"none",
                                                                              "silu_multiply"};

struct GroupedMatMulCase {
  using Args = GroupedMatMulArgs;

  int64_t m = 1;
  int64_t n = 1;       // of the first product, and of the second of silu_multiply
  int64_t n_rest = 1;  // of the others
  int64_t k = 1;
  int64_t products = 3;
  GroupEpilogue epilogue = GroupEpilogue::kNone;  // silu_multiply: products is 2
  DType a_dtype = DType::kF32;
  DType b_dtype = DType::kF32;
  DType last_b_dtype = DType::kF32;  // of the last product
  DType out_dtype = DType::kF32;
  DType bias_dtype = DType::kF32;
  bool bias = false;
  bool some_bias = false;  // of the first product alone
  Weights weights = Weights::kPlain;
  bool float_activations = true;  // false: they may be rounded to 8 bits where b is quantised
  Layout a_layout = Layout::kContiguous;
  Layout b_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("m", self.m);
    visit("n", self.n);
    visit("n_rest", self.n_rest);
    visit("k", self.k);
    visit("products", self.products);
    visit("epilogue", self.epilogue);
    visit("a_dtype", self.a_dtype);
    visit("b_dtype", self.b_dtype);
    visit("last_b_dtype", self.last_b_dtype);
    visit("out_dtype", self.out_dtype);
    visit("bias_dtype", self.bias_dtype);
    visit("bias", self.bias);
    visit("some_bias", self.some_bias);
    visit("weights", self.weights);
    visit("float_activations", self.float_activations);
    visit("a_layout", self.a_layout);
    visit("b_layout", self.b_layout);
    visit("out_layout", self.out_layout);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  GroupedMatMulArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const GroupedMatMulArgs& args) const;
  std::string DTypeLabel() const;
  std::vector<std::string> PackedOperands() const;

  bool gated() const { return epilogue == GroupEpilogue::kSiluMultiply; }

  static std::vector<GroupedMatMulCase> Grid(GridSize size);
  static GroupedMatMulCase Random(Rng& rng);
};

}  // namespace tandem::cases
