#include "tests/cases/matmul_cases.h"

#include <algorithm>

#include "tests/cases/pairwise.h"
#include "tests/reference/elements.h"
#include "tests/reference/matmul.h"

namespace tandem::cases {
namespace {

using Case = MatMulCase;

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;
constexpr DType kQ8_0 = DType::kQ8_0, kQ4_0 = DType::kQ4_0, kTQ2_0 = DType::kTQ2_0;
constexpr DType kQ4_K = DType::kQ4_K, kQ5_K = DType::kQ5_K, kQ6_K = DType::kQ6_K;

// Any order of summation is off by a few roundings of the terms' magnitudes.
constexpr double kSumFloor = 0x1p-22;

Pairwise<Case>::Settings Sizes(const std::vector<std::array<int64_t, 3>>& sizes) {
  Pairwise<Case>::Settings settings;
  for (const auto& [m, n, k] : sizes) {
    settings.push_back([=](Case& c) {
      c.m = m;
      c.n = n;
      c.k = k;
    });
  }
  return settings;
}

// a, b, out
Pairwise<Case>::Settings DTypes(const std::vector<std::array<DType, 3>>& dtypes) {
  Pairwise<Case>::Settings settings;
  for (const auto& [a, b, out] : dtypes) {
    settings.push_back([=](Case& c) {
      c.a_dtype = a;
      c.b_dtype = b;
      c.out_dtype = out;
    });
  }
  return settings;
}

struct BatchForm {
  int64_t batch;
  bool a_broadcast, b_broadcast, b_is_matrix;
};
Pairwise<Case>::Settings Batches(const std::vector<BatchForm>& forms) {
  Pairwise<Case>::Settings settings;
  for (const BatchForm& form : forms) {
    settings.push_back([=](Case& c) {
      c.batch = form.batch;
      c.a_broadcast = form.a_broadcast;
      c.b_broadcast = form.b_broadcast;
      c.b_is_matrix = form.b_is_matrix;
    });
  }
  return settings;
}

// Block formats need whole blocks in K; packing needs a matrix. A packed block format is read by
// kernels that round activations, and by no other: with float activations b itself is needed.
Case Consistent(Case c) {
  const int block = BlockLength(c.b_dtype);
  c.k = (c.k + block - 1) / block * block;
  if (c.batch > 0) c.weights = Weights::kPlain;
  if (block > 1 && c.weights == Weights::kPackedOnly) c.float_activations = false;
  return c;
}

std::vector<Case> Consistent(std::vector<Case> cases) {
  for (Case& c : cases) c = Consistent(c);
  return cases;
}

const std::vector<std::array<DType, 3>> kUsualDTypes = {
    {kF32, kF32, kF32},    {kF32, kF16, kF32},    {kF32, kBF16, kF32},   {kF16, kF16, kF16},
    {kBF16, kBF16, kBF16}, {kBF16, kBF16, kF32},  {kF32, kQ8_0, kF32},   {kF32, kQ4_0, kF32},
    {kF16, kQ8_0, kF16},   {kBF16, kQ4_0, kBF16}, {kF32, kQ4_K, kF32},   {kF32, kQ5_K, kF32},
    {kF32, kQ6_K, kF32},   {kF32, kTQ2_0, kF32},  {kBF16, kQ4_K, kBF16},
};
const std::vector<std::array<DType, 3>> kMixedDTypes = {
    {kF32, kF32, kF32}, {kF16, kF32, kBF16}, {kBF16, kF16, kF32},  {kF32, kBF16, kF16},
    {kF16, kF16, kF16}, {kF16, kQ4_0, kF32}, {kF32, kQ8_0, kBF16}, {kF16, kQ6_K, kF32}};

// Quantised weights, packed: the integer products. Every number of rows that a strip can have,
// whole and partial panels (32 features) and units (64 to 256 elements of K).
std::vector<Case> PackedCases(const std::vector<std::array<int64_t, 3>>& sizes, uint64_t seed) {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Sizes(sizes))
          .Group(DTypes({{kF32, kQ8_0, kF32},
                         {kF32, kQ4_0, kF32},
                         {kF16, kQ8_0, kF16},
                         {kBF16, kQ4_0, kBF16},
                         {kF32, kQ4_K, kF32},
                         {kF32, kQ5_K, kF32},
                         {kF32, kQ6_K, kF32},
                         {kF32, kTQ2_0, kF32}}))
          .Field(&Case::bias, {false, true})
          .Field(&Case::addend, {Addend::kNone, Addend::kInPlace, Addend::kSeparate})
          .Field(&Case::activation, {Activation::kNone, Activation::kSilu, Activation::kGelu})
          .Field(&Case::weights, {Weights::kPackedOnly, Weights::kPackedBeside})
          .Field(&Case::a_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed})
          .Field(&Case::b_layout, {Layout::kContiguous, Layout::kPadded})
          .Field(&Case::out_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed})
          .Select(seed);
  for (Case& c : cases) {
    c.float_activations = false;
    c.extra_dtype = c.out_dtype;
  }
  return Consistent(std::move(cases));
}

// bf16 weights, packed: in pairs where there are bf16 dot products. Whole and partial panels (64
// features), pairs and steps of 32 elements of K, tiles of 16 rows.
std::vector<Case> PairCases(const std::vector<std::array<int64_t, 3>>& sizes, uint64_t seed) {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Sizes(sizes))
          .Group(DTypes({{kF32, kBF16, kF32}, {kBF16, kBF16, kBF16}, {kF16, kBF16, kF32}}))
          .Field(&Case::bias, {false, true})
          .Field(&Case::addend, {Addend::kNone, Addend::kInPlace, Addend::kSeparate})
          .Field(&Case::activation, {Activation::kNone, Activation::kSilu})
          .Field(&Case::weights, {Weights::kPackedOnly, Weights::kPackedBeside})
          .Field(&Case::float_activations, {false, true})
          .Field(&Case::a_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed})
          .Field(&Case::b_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed})
          .Field(&Case::out_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed})
          .Select(seed);
  for (Case& c : cases) c.extra_dtype = c.out_dtype;
  return cases;
}

// What a decoder does: projections of few or many tokens, with a residual or an activation.
std::vector<Case> UsualCases(const std::vector<std::array<int64_t, 3>>& sizes, uint64_t seed) {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Sizes(sizes))
          .Group(DTypes(kUsualDTypes))
          .Field(&Case::bias, {false, true})
          .Field(&Case::addend, {Addend::kNone, Addend::kInPlace})
          .Field(&Case::activation, {Activation::kNone, Activation::kSilu})
          .Field(&Case::weights, {Weights::kPlain, Weights::kPackedBeside, Weights::kPackedOnly})
          .Field(&Case::float_activations, {true, false})
          .Select(seed);
  for (Case& c : cases) c.extra_dtype = c.out_dtype;
  return Consistent(std::move(cases));
}

std::vector<Case> UnusualCases() {
  const std::vector<Layout> layouts = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                       Layout::kSpread};
  std::vector<Layout> inputs = layouts;
  inputs.push_back(Layout::kBroadcast);
  return Consistent(
      Pairwise<Case>()
          .Group(Sizes({{1, 1, 1},
                        {1, 17, 33},
                        {3, 5, 0},
                        {0, 4, 8},
                        {4, 0, 8},
                        {5, 70, 129},
                        {33, 48, 64},
                        {40, 31, 100}}))
          .Group(Batches({{0, false, false, false},
                          {1, false, false, false},
                          {3, false, false, false},
                          {3, true, false, false},
                          {2, false, true, false},
                          {2, false, false, true}}))
          .Group(DTypes(kMixedDTypes))
          .Field(&Case::extra_dtype, {kF32, kF16, kBF16})
          .Field(&Case::bias, {false, true})
          .Field(&Case::addend, {Addend::kNone, Addend::kSeparate, Addend::kInPlace})
          .Field(&Case::alpha, {1.0f, -0.75f, 0.0f})
          .Field(&Case::beta, {1.0f, 0.0f, 2.5f})
          .Field(&Case::activation,
                 {Activation::kNone, Activation::kSilu, Activation::kGelu, Activation::kRelu})
          .Field(&Case::weights, {Weights::kPlain, Weights::kPlain, Weights::kPackedBeside})
          .Field(&Case::float_activations, {true, false})
          .Field(&Case::a_layout, inputs)
          .Field(&Case::b_layout, inputs)
          .Field(&Case::out_layout, layouts)
          .Select(4000));
}

std::vector<Case> NamedCases() {
  return {
      // a decoded token against every dtype of weights; N and K no multiple of any vector
      {.n = 300, .k = 1000},
      {.n = 301, .k = 999, .b_dtype = kF16, .seed = 2},
      {.n = 259, .k = 1001, .b_dtype = kBF16, .bias = true, .seed = 3},
      {.n = 257, .k = 1024, .b_dtype = kQ8_0, .addend = Addend::kInPlace, .seed = 4},
      {.n = 255, .k = 992, .b_dtype = kQ4_0, .seed = 5},
      {.n = 193, .k = 768, .b_dtype = kQ4_K, .addend = Addend::kInPlace, .seed = 13},
      {.n = 131, .k = 1280, .b_dtype = kQ5_K, .seed = 14},
      {.n = 97, .k = 256, .b_dtype = kQ6_K, .bias = true, .seed = 15},
      {.n = 66, .k = 2304, .b_dtype = kTQ2_0, .seed = 16},
      // a prompt against quantised weights
      {.m = 260, .n = 33, .k = 512, .b_dtype = kQ4_K, .float_activations = false, .seed = 17},
      {.m = 257,
       .n = 40,
       .k = 352,
       .a_dtype = kBF16,
       .b_dtype = kQ8_0,
       .out_dtype = kBF16,
       .addend = Addend::kInPlace,
       .float_activations = false,
       .seed = 18},
      {.m = 300,
       .n = 19,
       .k = 256,
       .b_dtype = kQ6_K,
       .bias = true,
       .activation = Activation::kSilu,
       .float_activations = false,
       .seed = 19},
      // long sums: f16 accumulation would show
      {.n = 8, .k = 16384, .b_dtype = kF16, .seed = 6},
      {.m = 4,
       .n = 8,
       .k = 16384,
       .a_dtype = kBF16,
       .b_dtype = kBF16,
       .out_dtype = kBF16,
       .seed = 7},
      // C = alpha A B + beta C
      {.m = 9,
       .n = 20,
       .k = 50,
       .addend = Addend::kInPlace,
       .alpha = 0.5f,
       .beta = -2.0f,
       .seed = 8},
      // beta = 0: the addend is not read (an in-place one holds NaN where not yet written)
      {.m = 6, .n = 7, .k = 8, .addend = Addend::kSeparate, .beta = 0.0f, .seed = 9},
      // a [K, N] matrix, passed as its transposed view
      {.m = 12, .n = 40, .k = 64, .b_layout = Layout::kTransposed, .seed = 10},
      {.m = 1, .n = 65, .k = 64, .b_layout = Layout::kTransposed, .seed = 11},
      // an empty sum
      {.m = 3,
       .n = 4,
       .k = 0,
       .bias = true,
       .addend = Addend::kSeparate,
       .activation = Activation::kGelu,
       .seed = 12},
  };
}

Fill Normals(uint64_t seed, double deviation) {
  return [rng = Rng(seed), deviation](int64_t) mutable { return rng.Normal() * deviation; };
}

}  // namespace

Operands Case::MakeOperands() const {
  const auto random = static_cast<uint64_t>(seed) * 16 + (uint64_t{1} << 40);
  const auto shape = [&](int64_t z, int64_t rows, int64_t columns) {
    return batch > 0 ? Shape{z, rows, columns} : Shape{rows, columns};
  };
  Operands operands;
  operands.Input("a", a_dtype, shape(a_broadcast ? 1 : batch, m, k), a_layout, Normals(random, 1));
  const bool b_rank_2 = b_is_matrix || batch == 0;
  operands.Input("b", b_dtype, b_rank_2 ? Shape{n, k} : Shape{b_broadcast ? 1 : batch, n, k},
                 b_layout, Normals(random + 1, 0.5));
  if (bias) operands.Input("bias", extra_dtype, {n}, a_layout, Normals(random + 2, 1));
  if (addend == Addend::kSeparate) {
    operands.Input("addend", extra_dtype, shape(batch, m, n), a_layout, Normals(random + 3, 2));
  }
  if (addend == Addend::kInPlace) {
    operands.InOut("out", out_dtype, shape(batch, m, n), out_layout, Normals(random + 3, 2));
  } else {
    operands.Output("out", out_dtype, shape(batch, m, n), out_layout);
  }
  return operands;
}

MatMulArgs Case::Bind(const Views& views) const {
  MatMulArgs args;
  args.a = views("a");
  args.b = views("b");
  args.b_packed = views.Packed("b");
  // The references are given host views only and need b itself.
  if (weights == Weights::kPackedOnly && args.b_packed != nullptr) args.b = {};
  args.bias = views("bias");
  args.addend = addend == Addend::kInPlace ? views("out") : views("addend");
  args.out = views("out");
  args.alpha = alpha;
  args.beta = beta;
  args.activation = activation;
  args.float_activations = float_activations;
  return args;
}

std::vector<Expectation> Case::Expect(const MatMulArgs& args) const {
  const reference::MatMulResult oracle = reference::MatMul(args);
  const reference::MatMulResult naive = reference::NaiveMatMul(args);
  Expectation out{.operand = "out", .expected = oracle.out};
  out.allowed = AllowedErrors(oracle.out, naive.out, out_dtype, 0.0);
  for (size_t i = 0; i < out.allowed.size(); ++i) {
    out.allowed[i] += kSumFloor * oracle.magnitude[i];
  }
  if (!float_activations && IsBlockQuantized(b_dtype)) {
    const std::vector<double> rounding = reference::ActivationRounding(args);
    for (size_t i = 0; i < out.allowed.size(); ++i) out.allowed[i] += rounding[i];
  }
  return {std::move(out)};
}

std::string Case::DTypeLabel() const {
  std::string label(Name(a_dtype));
  if (b_dtype != a_dtype) label += " x " + std::string(Name(b_dtype));
  return label;
}

std::vector<Case> Case::Grid(GridSize size) {
  std::vector<Case> cases = NamedCases();
  if (size == GridSize::kShort) {
    std::erase_if(cases, [](const Case& c) { return c.k > 10'000; });
    Append(cases, UsualCases({{1, 96, 160}, {7, 33, 64}, {40, 64, 96}}, 3500));
    Append(cases,
           PackedCases({{1, 33, 512}, {5, 64, 96}, {8, 31, 256}, {20, 70, 320}, {49, 150, 1056}},
                       3700));
    Append(cases, PairCases({{1, 65, 95}, {7, 33, 64}, {17, 130, 545}, {40, 20, 31}}, 3900));
    return cases;
  }
  Append(cases, UsualCases({{1, 128, 256},
                            {1, 1, 64},
                            {2, 77, 320},
                            {5, 200, 96},
                            {8, 64, 512},
                            {9, 129, 224},
                            {16, 48, 1024},
                            {33, 100, 160},
                            {70, 256, 128},
                            {128, 130, 192}},
                           3000));
  Append(cases, UnusualCases());
  Append(cases, PackedCases({{1, 256, 768},
                             {2, 33, 32},
                             {3, 1, 1024},
                             {4, 64, 544},
                             {5, 100, 256},
                             {6, 31, 96},
                             {7, 32, 1280},
                             {13, 65, 512},
                             {100, 40, 288},
                             {530, 33, 256},
                             {49, 150, 1056},
                             {8, 40, 0}},
                            3800));
  Append(cases, PairCases({{1, 256, 768},
                           {1, 1, 1},
                           {2, 65, 95},
                           {3, 63, 130},
                           {4, 129, 33},
                           {5, 100, 256},
                           {6, 31, 161},
                           {7, 128, 34},
                           {8, 70, 300},
                           {9, 65, 64},
                           {15, 64, 513},
                           {16, 200, 96},
                           {17, 33, 1025},
                           {31, 64, 512},
                           {33, 150, 577},
                           {49, 40, 31},
                           {530, 33, 100},
                           {8, 40, 0},
                           {20, 40, 0}},
                          4100));
  return cases;
}

Case Case::Random(Rng& rng) {
  static const std::vector<DType> kFloats = {kF32, kF16, kBF16};
  static const std::vector<Layout> kLayouts = {Layout::kContiguous, Layout::kContiguous,
                                               Layout::kPadded,     Layout::kTransposed,
                                               Layout::kBroadcast,  Layout::kSpread};
  Case c;
  c.m = rng.Chance(0.4) ? rng.Integer(1, 8) : rng.Integer(0, 70);
  c.n = rng.Integer(0, 150);
  c.k = rng.Chance(0.5) ? 32 * rng.Integer(0, 12) : rng.Integer(0, 300);
  c.batch = rng.Chance(0.7) ? 0 : rng.Integer(1, 4);
  c.a_broadcast = c.batch > 0 && rng.Chance(0.2);
  c.b_broadcast = c.batch > 0 && rng.Chance(0.2);
  c.b_is_matrix = c.batch > 0 && rng.Chance(0.3);
  c.a_dtype = rng.Pick(kFloats);
  c.b_dtype = rng.Chance(0.4)
                  ? c.a_dtype
                  : rng.Pick<DType>({kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_K, kQ5_K, kQ6_K, kTQ2_0});
  c.out_dtype = rng.Chance(0.5) ? c.a_dtype : rng.Pick(kFloats);
  c.extra_dtype = rng.Pick(kFloats);
  c.bias = rng.Chance(0.4);
  c.addend = static_cast<Addend>(rng.Integer(0, 2));
  c.alpha = rng.Chance(0.7) ? 1.0f : static_cast<float>(rng.Normal());
  c.beta = rng.Chance(0.6) ? 1.0f : static_cast<float>(rng.Integer(-1, 1));
  c.activation = static_cast<Activation>(rng.Integer(0, 3));
  c.weights = static_cast<Weights>(rng.Integer(0, 2));
  c.float_activations = rng.Chance(0.5);
  c.a_layout = rng.Pick(kLayouts);
  c.b_layout = rng.Pick(kLayouts);
  c.out_layout = rng.Pick(kLayouts);
  c.seed = rng.Integer(1, 1'000'000);
  return Consistent(c);
}

}  // namespace tandem::cases
