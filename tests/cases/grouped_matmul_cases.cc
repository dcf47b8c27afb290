#include "tests/cases/grouped_matmul_cases.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/cases/pairwise.h"
#include "tests/reference/grouped_matmul.h"

namespace tandem::cases {
namespace {

using Case = GroupedMatMulCase;

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;
constexpr DType kQ8_0 = DType::kQ8_0, kQ4_0 = DType::kQ4_0, kTQ2_0 = DType::kTQ2_0;
constexpr DType kQ4_K = DType::kQ4_K, kQ5_K = DType::kQ5_K, kQ6_K = DType::kQ6_K;
constexpr GroupEpilogue kSiluMultiply = GroupEpilogue::kSiluMultiply;

// As for single products.
constexpr double kSumFloor = 0x1p-22;

// Block formats need whole blocks in K. A packed block format is read by kernels that round
// activations, and by no other: with float activations the matrices themselves are needed.
Case Consistent(Case c) {
  const int block = std::max(BlockLength(c.b_dtype), BlockLength(c.last_b_dtype));
  c.k = (c.k + block - 1) / block * block;
  if (c.gated()) c.products = 2;
  if (block > 1 && c.weights == Weights::kPackedOnly) c.float_activations = false;
  return c;
}

std::vector<Case> Consistent(std::vector<Case> cases) {
  for (Case& c : cases) c = Consistent(c);
  return cases;
}

// m, n, n_rest, k
Pairwise<Case>::Settings Sizes(const std::vector<std::array<int64_t, 4>>& sizes) {
  Pairwise<Case>::Settings settings;
  for (const auto& [m, n, n_rest, k] : sizes) {
    settings.push_back([=](Case& c) {
      c.m = m;
      c.n = n;
      c.n_rest = n_rest;
      c.k = k;
    });
  }
  return settings;
}

// a, b, the last b, out
Pairwise<Case>::Settings DTypes(const std::vector<std::array<DType, 4>>& dtypes) {
  Pairwise<Case>::Settings settings;
  for (const auto& [a, b, last, out] : dtypes) {
    settings.push_back([=](Case& c) {
      c.a_dtype = a;
      c.b_dtype = b;
      c.last_b_dtype = last;
      c.out_dtype = out;
    });
  }
  return settings;
}

// Query, key and value projections, gate and up: every type of weights, and files that mix them.
std::vector<Case> DecoderCases(const std::vector<std::array<int64_t, 4>>& sizes, uint64_t seed) {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Sizes(sizes))
          .Group(DTypes({{kF32, kF32, kF32, kF32},
                         {kF32, kF16, kF16, kF32},
                         {kBF16, kBF16, kBF16, kBF16},
                         {kF16, kF16, kF16, kF16},
                         {kF32, kBF16, kF16, kF32},
                         {kF32, kQ8_0, kQ8_0, kF32},
                         {kF32, kQ4_0, kQ4_0, kF32},
                         {kF16, kQ8_0, kQ8_0, kF16},
                         {kF32, kQ4_0, kQ8_0, kF32},
                         {kF32, kQ4_K, kQ4_K, kF32},
                         {kF32, kQ4_K, kQ6_K, kF32},
                         {kF32, kQ5_K, kQ5_K, kF32},
                         {kF32, kQ5_K, kQ6_K, kBF16},
                         {kF32, kQ6_K, kQ6_K, kF32},
                         {kF32, kTQ2_0, kTQ2_0, kF32},
                         {kF32, kQ8_0, kF16, kF32}}))
          .Field(&Case::products, {3, 2, 1, 4})
          .Field(&Case::epilogue, {GroupEpilogue::kNone, kSiluMultiply})
          .Field(&Case::bias, {false, true})
          .Field(&Case::some_bias, {false, true})
          .Field(&Case::weights, {Weights::kPlain, Weights::kPackedOnly, Weights::kPackedBeside})
          .Field(&Case::float_activations, {false, true})
          .Select(seed);
  for (Case& c : cases) c.bias_dtype = c.out_dtype;
  return Consistent(std::move(cases));
}

std::vector<Case> UnusualCases(uint64_t seed) {
  const std::vector<Layout> layouts = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                       Layout::kSpread};
  std::vector<Layout> inputs = layouts;
  inputs.push_back(Layout::kBroadcast);
  return Consistent(Pairwise<Case>()
                        .Group(Sizes({{1, 17, 5, 33},
                                      {3, 5, 70, 0},
                                      {0, 4, 4, 8},
                                      {2, 0, 3, 8},
                                      {4, 9, 0, 40},
                                      {8, 66, 1, 129},
                                      {21, 30, 11, 64}}))
                        .Group(DTypes({{kF32, kF32, kF32, kF32},
                                       {kF16, kF32, kBF16, kBF16},
                                       {kBF16, kF16, kF16, kF32},
                                       {kF16, kQ4_0, kQ4_0, kF32},
                                       {kF32, kQ8_0, kF32, kBF16}}))
                        .Field(&Case::products, {3, 2, 1, 4})
                        .Field(&Case::epilogue, {GroupEpilogue::kNone, kSiluMultiply})
                        .Field(&Case::bias_dtype, {kF32, kF16, kBF16})
                        .Field(&Case::bias, {false, true})
                        .Field(&Case::some_bias, {false, true})
                        .Field(&Case::weights, {Weights::kPlain, Weights::kPackedBeside})
                        .Field(&Case::float_activations, {true, false})
                        .Field(&Case::a_layout, inputs)
                        .Field(&Case::b_layout, inputs)
                        .Field(&Case::out_layout, layouts)
                        .Select(seed));
}

std::vector<Case> NamedCases() {
  return {
      // a decoded token: query, key and value of grouped heads; gate and up
      {.n = 300, .n_rest = 75, .k = 1000},
      {.n = 257,
       .n_rest = 66,
       .k = 512,
       .b_dtype = kQ4_K,
       .last_b_dtype = kQ6_K,
       .float_activations = false,
       .seed = 2},
      {.n = 193,
       .k = 768,
       .products = 2,
       .epilogue = kSiluMultiply,
       .b_dtype = kQ4_0,
       .last_b_dtype = kQ4_0,
       .weights = Weights::kPackedOnly,
       .float_activations = false,
       .seed = 3},
      {.n = 301,
       .k = 999,
       .products = 2,
       .epilogue = kSiluMultiply,
       .b_dtype = kF16,
       .last_b_dtype = kF16,
       .seed = 4},
      // a prompt
      {.m = 130,
       .n = 40,
       .n_rest = 33,
       .k = 256,
       .b_dtype = kQ8_0,
       .last_b_dtype = kQ8_0,
       .bias = true,
       .weights = Weights::kPackedBeside,
       .float_activations = false,
       .seed = 5},
      // packed in pairs, where there are bf16 dot products
      {.m = 2,
       .n = 130,
       .n_rest = 65,
       .k = 333,
       .b_dtype = kBF16,
       .last_b_dtype = kBF16,
       .bias = true,
       .weights = Weights::kPackedOnly,
       .seed = 8},
      {.m = 7,
       .n = 193,
       .k = 96,
       .products = 2,
       .epilogue = kSiluMultiply,
       .b_dtype = kBF16,
       .last_b_dtype = kBF16,
       .weights = Weights::kPackedOnly,
       .float_activations = false,
       .seed = 9},
      {.n = 100,
       .n_rest = 70,
       .k = 256,
       .b_dtype = kBF16,
       .last_b_dtype = kF16,
       .weights = Weights::kPackedBeside,
       .float_activations = false,
       .seed = 10},
      // an empty sum: the biases
      {.m = 3, .n = 4, .n_rest = 2, .k = 0, .bias = true, .seed = 6},
      {.m = 2, .n = 9, .k = 0, .products = 2, .epilogue = kSiluMultiply, .bias = true, .seed = 7},
  };
}

Fill Normals(uint64_t seed, double deviation) {
  return [rng = Rng(seed), deviation](int64_t) mutable { return rng.Normal() * deviation; };
}

}  // namespace

Operands Case::MakeOperands() const {
  Operands operands;
  if (products < 1 || products > GroupedMatMulArgs::kMaxProducts) {
    operands.Output("out0", out_dtype, {-1}, out_layout);
    return operands;
  }
  const auto random = static_cast<uint64_t>(seed) * 16 + (uint64_t{1} << 42);
  operands.Input("a", a_dtype, {m, k}, a_layout, Normals(random, 1));
  for (int64_t i = 0; i < products; ++i) {
    const int64_t features = i == 0 || gated() ? n : n_rest;
    const auto own = random + 2 * static_cast<uint64_t>(i);
    const std::string index = absl::StrCat(i);
    operands.Input("b" + index, i + 1 < products ? b_dtype : last_b_dtype, {features, k}, b_layout,
                   Normals(own + 1, 0.5));
    if (bias && (i == 0 || !some_bias)) {
      operands.Input("bias" + index, bias_dtype, {features}, a_layout, Normals(own + 2, 1));
    }
    if (i == 0 || !gated()) {
      operands.Output("out" + index, out_dtype, {m, features}, out_layout);
    }
  }
  return operands;
}

std::vector<std::string> Case::PackedOperands() const {
  std::vector<std::string> names;
  if (weights == Weights::kPlain) return names;
  for (int64_t i = 0; i < products; ++i) names.push_back(absl::StrCat("b", i));
  return names;
}

GroupedMatMulArgs Case::Bind(const Views& views) const {
  GroupedMatMulArgs args;
  args.a = views("a");
  args.num_products = static_cast<int>(products);
  for (int64_t i = 0; i < products; ++i) {
    GroupedMatMulArgs::Product& product = args.products[static_cast<size_t>(i)];
    const std::string index = absl::StrCat(i);
    product.b = views("b" + index);
    product.bias = views("bias" + index);
    product.out = views("out" + index);
    product.b_packed = views.Packed("b" + index);
    // The references are given host views only and need b itself.
    if (weights == Weights::kPackedOnly && product.b_packed != nullptr) product.b = {};
  }
  args.epilogue = epilogue;
  args.float_activations = float_activations;
  return args;
}

std::vector<Expectation> Case::Expect(const GroupedMatMulArgs& args) const {
  const reference::GroupedMatMulResult result = reference::GroupedMatMul(args, kSumFloor);
  std::vector<Expectation> expectations;
  for (size_t i = 0; i < result.outs.size(); ++i) {
    const reference::GroupedMatMulResult::Out& out = result.outs[i];
    Expectation expectation{.operand = absl::StrCat("out", i), .expected = out.oracle};
    expectation.allowed = AllowedErrors(out.oracle, out.naive, out_dtype, 0.0);
    for (size_t j = 0; j < out.slack.size(); ++j) expectation.allowed[j] += out.slack[j];
    expectations.push_back(std::move(expectation));
  }
  return expectations;
}

std::string Case::DTypeLabel() const {
  std::string label(Name(a_dtype));
  if (b_dtype != a_dtype) label += " x " + std::string(Name(b_dtype));
  return label;
}

std::vector<Case> Case::Grid(GridSize size) {
  std::vector<Case> cases = NamedCases();
  if (size == GridSize::kShort) {
    Append(cases, DecoderCases({{1, 96, 33, 256}, {5, 64, 20, 96}}, 5500));
    return cases;
  }
  Append(cases, DecoderCases({{1, 256, 64, 512},
                              {1, 1, 1, 64},
                              {1, 65, 64, 2304},
                              {2, 77, 31, 320},
                              {3, 128, 32, 160},
                              {6, 33, 70, 256},
                              {8, 64, 40, 1280},
                              {13, 50, 20, 288},
                              {70, 96, 33, 128}},
                             5000));
  Append(cases, UnusualCases(6000));
  return cases;
}

Case Case::Random(Rng& rng) {
  static const std::vector<DType> kFloats = {kF32, kF16, kBF16};
  static const std::vector<DType> kAll = {kF32,  kF16,  kBF16, kQ8_0, kQ4_0,
                                          kQ4_K, kQ5_K, kQ6_K, kTQ2_0};
  static const std::vector<Layout> kLayouts = {Layout::kContiguous, Layout::kContiguous,
                                               Layout::kPadded,     Layout::kTransposed,
                                               Layout::kBroadcast,  Layout::kSpread};
  Case c;
  c.m = rng.Chance(0.7) ? rng.Integer(1, 8) : rng.Integer(0, 40);
  c.n = rng.Integer(0, 150);
  c.n_rest = rng.Integer(0, 80);
  c.k = rng.Chance(0.5) ? 32 * rng.Integer(0, 12) : rng.Integer(0, 300);
  c.products = rng.Integer(1, GroupedMatMulArgs::kMaxProducts);
  c.epilogue = rng.Chance(0.4) ? kSiluMultiply : GroupEpilogue::kNone;
  c.a_dtype = rng.Pick(kFloats);
  c.b_dtype = rng.Pick(kAll);
  c.last_b_dtype = rng.Chance(0.7) ? c.b_dtype : rng.Pick(kAll);
  c.out_dtype = rng.Chance(0.5) ? c.a_dtype : rng.Pick(kFloats);
  c.bias_dtype = rng.Pick(kFloats);
  c.bias = rng.Chance(0.4);
  c.some_bias = rng.Chance(0.3);
  c.weights = static_cast<Weights>(rng.Integer(0, 2));
  c.float_activations = rng.Chance(0.4);
  c.a_layout = rng.Pick(kLayouts);
  c.b_layout = rng.Pick(kLayouts);
  c.out_layout = rng.Pick(kLayouts);
  c.seed = rng.Integer(1, 1'000'000);
  return Consistent(c);
}

}  // namespace tandem::cases
