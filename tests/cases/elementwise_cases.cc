#include "tests/cases/elementwise_cases.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

#include "tests/cases/pairwise.h"
#include "tests/reference/elements.h"
#include "tests/reference/quantize.h"

namespace tandem::cases {
namespace {

using reference::HalfUlp;
using reference::ReadAll;
using reference::RoundTo;

constexpr double kEpsilon = 0x1p-24;  // half an ulp of f32 at 1

const std::vector<Layout> kInputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                     Layout::kBroadcast, Layout::kSpread};
const std::vector<Layout> kOutputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                      Layout::kSpread};
// Around every vector length, and rows long enough to be cut.
const std::vector<int64_t> kColumns = {0, 1, 3, 7, 15, 16, 17, 31, 33, 64, 100, 257, 1000};
const std::vector<int64_t> kShortColumns = {1, 17, 100};

// Rows that vectors fit: those of GPUs (16 bytes), tiles of a warp and a bit more, rows that a warp
// or a block can hold and longer ones.
const std::vector<Layout> kVectorInputs = {Layout::kContiguous, Layout::kAligned,
                                           Layout::kBroadcast};
const std::vector<Layout> kVectorOutputs = {Layout::kContiguous, Layout::kAligned};
std::vector<int64_t> VectorColumns(GridSize size) {
  if (size == GridSize::kShort) return {256, 520};
  return {8, 64, 256, 520, 1024, 1032, 2056, 4096, 8200, 16384, 20008};
}

// rows, columns
std::vector<std::pair<int64_t, int64_t>> Sizes(GridSize size) {
  if (size == GridSize::kShort) return {{1, 40}, {3, 17}};
  return {{0, 8}, {1, 1}, {1, 40000}, {5, 0}, {40, 1000}, {70, 515}};
}

uint64_t SeedOf(int64_t seed, int operand) {
  return (static_cast<uint64_t>(seed) << 8) + static_cast<uint64_t>(operand);
}

template <typename Case>
void RandomSize(Case& c, Rng& rng) {
  c.rows = rng.Integer(0, 40);
  c.columns = rng.Chance(0.9) ? rng.Integer(0, 300) : rng.Integer(300, 20000);
  c.seed = rng.Integer(1, 1'000'000);
}

Layout RandomLayout(Rng& rng) { return rng.Chance(0.6) ? Layout::kContiguous : rng.Pick(kInputs); }

bool AnyNan(const double* x, int64_t count) {
  return std::any_of(x, x + count, [](double v) { return std::isnan(v); });
}

}  // namespace

// ---- softmax

Operands SoftmaxCase::MakeOperands() const {
  Operands operands;
  const Shape shape = {rows, columns};
  if (in_place) {
    operands.InOut("x", x_dtype, shape, x_layout, FillWith(values, SeedOf(seed, 0)));
  } else {
    operands.Input("x", x_dtype, shape, x_layout, FillWith(values, SeedOf(seed, 0)));
    operands.Output("out", out_dtype, shape, out_layout);
  }
  return operands;
}

SoftmaxArgs SoftmaxCase::Bind(const Views& views) const {
  return {.x = views("x"), .out = views(in_place ? "x" : "out"), .scale = scale};
}

std::vector<Expectation> SoftmaxCase::Expect(const SoftmaxArgs& args) const {
  const double infinity = std::numeric_limits<double>::infinity();
  Expectation out{.operand = in_place ? "x" : "out"};
  std::vector<double> x = ReadAll(args.x);
  for (double& v : x) v *= static_cast<double>(scale);
  for (int64_t r = 0; r < rows; ++r) {
    const double* row = x.data() + r * columns;
    const double maximum = std::accumulate(row, row + columns, -infinity,
                                           [](double a, double b) { return std::fmax(a, b); });
    double sum = 0.0;
    for (int64_t n = 0; n < columns; ++n) sum += std::exp(row[n] - maximum);
    const bool masked = maximum == -infinity && !AnyNan(row, columns);
    for (int64_t n = 0; n < columns; ++n) {
      const double y = masked ? 0.0 : std::exp(row[n] - maximum) / sum;
      // The exponent is rounded relative to the size of its terms; 2^-140: subnormal exponentials.
      const double terms = 8.0 + 2.0 * (std::fabs(row[n]) + std::fabs(maximum));
      out.expected.push_back(y);
      out.allowed.push_back(std::isfinite(terms)
                                ? HalfUlp(args.out.dtype, y) + y * kEpsilon * terms + 0x1p-140
                                : 0.0);
    }
  }
  return {std::move(out)};
}

std::string SoftmaxCase::DTypeLabel() const {
  return ConversionLabel(x_dtype, in_place ? x_dtype : out_dtype);
}

std::vector<SoftmaxCase> SoftmaxCase::Grid(GridSize size) {
  std::vector<SoftmaxCase> cases;
  for (const auto& [r, n] : Sizes(size)) cases.push_back({.rows = r, .columns = n});
  Append(cases,
         Pairwise<SoftmaxCase>()
             .Field(&SoftmaxCase::rows, {1, 5})
             .Field(&SoftmaxCase::columns, size == GridSize::kShort ? kShortColumns : kColumns)
             .Field(&SoftmaxCase::x_dtype, FloatDTypes())
             .Field(&SoftmaxCase::out_dtype, FloatDTypes())
             .Field(&SoftmaxCase::scale, {1.0f, 0.125f, -2.0f, 0.0f})
             .Field(&SoftmaxCase::in_place, {false, true})
             .Field(&SoftmaxCase::x_layout, kInputs)
             .Field(&SoftmaxCase::out_layout, kOutputs)
             .Field(&SoftmaxCase::values,
                    {Values::kNormal, Values::kLarge, Values::kSmall, Values::kZeros,
                     Values::kNonFinite, Values::kMasked, Values::kOnlyNan})
             .Select(6000));
  Append(cases, Pairwise<SoftmaxCase>()
                    .Field(&SoftmaxCase::rows, {1, 9})
                    .Field(&SoftmaxCase::columns, VectorColumns(size))
                    .Field(&SoftmaxCase::x_dtype, FloatDTypes())
                    .Field(&SoftmaxCase::out_dtype, FloatDTypes())
                    .Field(&SoftmaxCase::in_place, {false, true})
                    .Field(&SoftmaxCase::x_layout, kVectorInputs)
                    .Field(&SoftmaxCase::out_layout, kVectorOutputs)
                    .Field(&SoftmaxCase::values,
                           {Values::kNormal, Values::kLarge, Values::kNonFinite, Values::kMasked})
                    .Select(6100));
  return cases;
}

SoftmaxCase SoftmaxCase::Random(Rng& rng) {
  SoftmaxCase c;
  RandomSize(c, rng);
  c.x_dtype = rng.Pick(FloatDTypes());
  c.out_dtype = rng.Pick(FloatDTypes());
  c.scale = static_cast<float>(rng.Normal());
  c.in_place = rng.Chance(0.2);
  c.x_layout = RandomLayout(rng);
  c.values = rng.Pick<Values>({Values::kNormal, Values::kLarge, Values::kMasked});
  return c;
}

// ---- rms_norm

Operands RmsNormCase::MakeOperands() const {
  Operands operands;
  const std::vector<Shape> shapes = {
      {columns}, {rows, columns}, {rows, heads, columns}, {batch, rows, heads, columns}};
  const Shape& shape = shapes[static_cast<size_t>(std::clamp<int64_t>(rank, 1, 4) - 1)];
  const auto add = [&](std::string_view name, DType dtype, bool written, int i) {
    const Fill fill = FillWith(values, SeedOf(seed, i));
    if (written) {
      operands.InOut(name, dtype, shape, x_layout, fill);
    } else {
      operands.Input(name, dtype, shape, x_layout, fill);
    }
  };
  add("x", x_dtype, OutIsX() || (residual && sum_in_place == InPlace::kFirst), 0);
  if (!OutIsX()) operands.Output("out", out_dtype, shape, out_layout);
  if (residual) {
    add("residual", residual_dtype, sum_in_place == InPlace::kSecond, 2);
    if (sum_in_place == InPlace::kNo) operands.Output("sum", sum_dtype, shape, out_layout);
  }
  operands.Input("weight", weight_dtype, {columns}, weight_layout,
                 FillWith(Values::kNormal, SeedOf(seed, 1)));
  return operands;
}

bool RmsNormCase::OutIsX() const {
  return in_place && !(residual && sum_in_place == InPlace::kFirst);
}
std::string RmsNormCase::SumName() const {
  const std::array<std::string, 3> names = {"sum", "x", "residual"};
  return names[static_cast<size_t>(sum_in_place)];
}

RmsNormArgs RmsNormCase::Bind(const Views& views) const {
  RmsNormArgs args;
  args.x = views("x");
  args.weight = views("weight");
  args.out = views(OutIsX() ? "x" : "out");
  args.eps = eps;
  if (residual) {
    args.residual = views("residual");
    args.sum = views(SumName());
  }
  return args;
}

std::vector<Expectation> RmsNormCase::Expect(const RmsNormArgs& args) const {
  std::vector<Expectation> expectations;
  std::vector<double> x = ReadAll(args.x);
  if (residual) {
    const std::vector<double> other = ReadAll(args.residual);
    for (size_t i = 0; i < x.size(); ++i) {
      // Rounded to f32, then to the type of the sum.
      const float sum = static_cast<float>(x[i]) + static_cast<float>(other[i]);
      x[i] = RoundTo(args.sum.dtype, sum);
    }
    expectations.push_back({.operand = SumName(), .expected = x, .allowed = {0.0}});
  }
  Expectation out{.operand = OutIsX() ? "x" : "out"};
  const std::vector<double> weight = ReadAll(args.weight);
  for (size_t row = 0; row < x.size(); row += weight.size()) {
    double squares = 0.0;
    for (size_t n = 0; n < weight.size(); ++n) squares += x[row + n] * x[row + n];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(weight.size()) + eps);
    for (size_t n = 0; n < weight.size(); ++n) {
      const double y = x[row + n] * inverse * weight[n];
      out.expected.push_back(y);
      out.allowed.push_back(HalfUlp(args.out.dtype, y) + std::fabs(y) * 8.0 * kEpsilon);
    }
  }
  expectations.push_back(std::move(out));
  return expectations;
}

std::string RmsNormCase::DTypeLabel() const {
  return ConversionLabel(x_dtype, in_place ? x_dtype : out_dtype);
}

std::vector<RmsNormCase> RmsNormCase::Grid(GridSize size) {
  std::vector<RmsNormCase> cases;
  for (const auto& [r, n] : Sizes(size)) {
    cases.push_back({.rows = r, .columns = n});
    cases.push_back({.rows = r, .columns = n, .residual = true, .sum_in_place = InPlace::kSecond});
  }
  const auto variants = [&] {
    return Pairwise<RmsNormCase>()
        .Field(&RmsNormCase::rank, {1, 2, 3, 4})
        .Field(&RmsNormCase::rows, {1, 5})
        .Field(&RmsNormCase::columns, size == GridSize::kShort ? kShortColumns : kColumns)
        .Field(&RmsNormCase::x_dtype, FloatDTypes())
        .Field(&RmsNormCase::weight_dtype, FloatDTypes())
        .Field(&RmsNormCase::out_dtype, FloatDTypes())
        .Field(&RmsNormCase::eps, {1e-5f, 1e-6f, 1.0f})
        .Field(&RmsNormCase::in_place, {false, true})
        .Field(&RmsNormCase::x_layout, kInputs)
        .Field(&RmsNormCase::weight_layout, {Layout::kContiguous, Layout::kSpread})
        .Field(&RmsNormCase::out_layout, kOutputs)
        .Field(&RmsNormCase::values, {Values::kNormal, Values::kLarge, Values::kSmall,
                                      Values::kZeros, Values::kNonFinite});
  };
  Append(cases, variants().Select(6200));
  Append(cases,
         variants()
             .Field(&RmsNormCase::residual, {true})
             .Field(&RmsNormCase::residual_dtype, FloatDTypes())
             .Field(&RmsNormCase::sum_dtype, FloatDTypes())
             .Field(&RmsNormCase::sum_in_place, {InPlace::kNo, InPlace::kFirst, InPlace::kSecond})
             .Select(6300));
  Append(cases,
         Pairwise<RmsNormCase>()
             .Field(&RmsNormCase::rank, {2, 3, 4})
             .Field(&RmsNormCase::rows, {1, 9})
             .Field(&RmsNormCase::columns, VectorColumns(size))
             .Field(&RmsNormCase::x_dtype, FloatDTypes())
             .Field(&RmsNormCase::weight_dtype, FloatDTypes())
             .Field(&RmsNormCase::out_dtype, FloatDTypes())
             .Field(&RmsNormCase::in_place, {false, true})
             .Field(&RmsNormCase::x_layout, kVectorInputs)
             .Field(&RmsNormCase::out_layout, kVectorOutputs)
             .Field(&RmsNormCase::residual, {false, true})
             .Field(&RmsNormCase::residual_dtype, FloatDTypes())
             .Field(&RmsNormCase::sum_dtype, FloatDTypes())
             .Field(&RmsNormCase::sum_in_place, {InPlace::kNo, InPlace::kFirst, InPlace::kSecond})
             .Select(6350));
  return cases;
}

RmsNormCase RmsNormCase::Random(Rng& rng) {
  RmsNormCase c;
  RandomSize(c, rng);
  c.rank = rng.Integer(1, 4);
  c.heads = rng.Integer(1, 4);
  c.x_dtype = rng.Pick(FloatDTypes());
  c.weight_dtype = rng.Pick(FloatDTypes());
  c.out_dtype = rng.Pick(FloatDTypes());
  c.in_place = rng.Chance(0.3);
  c.residual = rng.Chance(0.5);
  c.residual_dtype = rng.Chance(0.7) ? c.x_dtype : rng.Pick(FloatDTypes());
  c.sum_dtype = rng.Pick(FloatDTypes());
  c.sum_in_place = static_cast<InPlace>(rng.Integer(0, 2));
  c.x_layout = RandomLayout(rng);
  return c;
}

// ---- silu_mul

Operands SiluMulCase::MakeOperands() const {
  Operands operands;
  const Shape shape = {rows, columns};
  const auto add = [&](std::string_view name, DType dtype, Layout layout, InPlace written, int i) {
    const Fill fill = FillWith(values, SeedOf(seed, i));
    if (in_place == written) {
      operands.InOut(name, dtype, shape, layout, fill);
    } else {
      operands.Input(name, dtype, shape, layout, fill);
    }
  };
  add("gate", gate_dtype, gate_layout, InPlace::kFirst, 0);
  add("up", up_dtype, up_layout, InPlace::kSecond, 1);
  if (in_place == InPlace::kNo) operands.Output("out", out_dtype, shape, out_layout);
  return operands;
}

SiluMulArgs SiluMulCase::Bind(const Views& views) const {
  const std::array<std::string_view, 3> names = {"out", "gate", "up"};
  return {
      .gate = views("gate"), .up = views("up"), .out = views(names[static_cast<size_t>(in_place)])};
}

std::vector<Expectation> SiluMulCase::Expect(const SiluMulArgs& args) const {
  const std::array<std::string, 3> names = {"out", "gate", "up"};
  Expectation out{.operand = names[static_cast<size_t>(in_place)]};
  const std::vector<double> gate = ReadAll(args.gate);
  const std::vector<double> up = ReadAll(args.up);
  for (size_t i = 0; i < gate.size(); ++i) {
    double y = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
    if (std::isinf(RoundTo(args.out.dtype, y))) y = RoundTo(args.out.dtype, y);  // overflow
    out.expected.push_back(y);
    // 2^-135 * |up|: exponentials that are subnormal in f32.
    out.allowed.push_back(HalfUlp(args.out.dtype, y) + std::fabs(y) * 6.0 * kEpsilon +
                          (std::isfinite(up[i]) ? std::fabs(up[i]) * 0x1p-135 : 0.0));
  }
  return {std::move(out)};
}

std::string SiluMulCase::DTypeLabel() const { return ConversionLabel(gate_dtype, out_dtype); }

std::vector<SiluMulCase> SiluMulCase::Grid(GridSize size) {
  std::vector<SiluMulCase> cases;
  for (const auto& [r, n] : Sizes(size)) cases.push_back({.rows = r, .columns = n});
  Append(cases,
         Pairwise<SiluMulCase>()
             .Field(&SiluMulCase::rows, {1, 5})
             .Field(&SiluMulCase::columns, size == GridSize::kShort ? kShortColumns : kColumns)
             .Field(&SiluMulCase::gate_dtype, FloatDTypes())
             .Field(&SiluMulCase::up_dtype, FloatDTypes())
             .Field(&SiluMulCase::out_dtype, FloatDTypes())
             .Field(&SiluMulCase::in_place, {InPlace::kNo, InPlace::kFirst, InPlace::kSecond})
             .Field(&SiluMulCase::gate_layout, kInputs)
             .Field(&SiluMulCase::up_layout, kInputs)
             .Field(&SiluMulCase::out_layout, kOutputs)
             .Field(&SiluMulCase::values, {Values::kNormal, Values::kLarge, Values::kSmall,
                                           Values::kZeros, Values::kNonFinite})
             .Select(6400));
  Append(cases,
         Pairwise<SiluMulCase>()
             .Field(&SiluMulCase::rows, {1, 5})
             .Field(&SiluMulCase::columns, VectorColumns(size))
             .Field(&SiluMulCase::gate_dtype, FloatDTypes())
             .Field(&SiluMulCase::up_dtype, FloatDTypes())
             .Field(&SiluMulCase::out_dtype, FloatDTypes())
             .Field(&SiluMulCase::in_place, {InPlace::kNo, InPlace::kFirst, InPlace::kSecond})
             .Field(&SiluMulCase::gate_layout, kVectorInputs)
             .Field(&SiluMulCase::up_layout, kVectorInputs)
             .Field(&SiluMulCase::out_layout, kVectorOutputs)
             .Select(6500));
  return cases;
}

SiluMulCase SiluMulCase::Random(Rng& rng) {
  SiluMulCase c;
  RandomSize(c, rng);
  c.gate_dtype = rng.Pick(FloatDTypes());
  c.up_dtype = rng.Chance(0.8) ? c.gate_dtype : rng.Pick(FloatDTypes());
  c.out_dtype = rng.Pick(FloatDTypes());
  c.gate_layout = RandomLayout(rng);
  c.up_layout = RandomLayout(rng);
  c.values = rng.Chance(0.7) ? Values::kNormal : Values::kLarge;
  return c;
}

// ---- add

Operands AddCase::MakeOperands() const {
  Operands operands;
  const auto add = [&](std::string_view name, DType dtype, const Shape& shape, Layout layout,
                       InPlace written, int i) {
    const Fill fill = FillWith(values, SeedOf(seed, i));
    if (in_place == written) {
      operands.InOut(name, dtype, shape, layout, fill);
    } else {
      operands.Input(name, dtype, shape, layout, fill);
    }
  };
  add("a", a_dtype, {rows, columns}, a_layout, InPlace::kFirst, 0);
  add("b", b_dtype, {one_row ? 1 : rows, columns}, b_layout, InPlace::kSecond, 1);
  if (in_place == InPlace::kNo) operands.Output("out", out_dtype, {rows, columns}, out_layout);
  return operands;
}

AddArgs AddCase::Bind(const Views& views) const {
  const std::array<std::string_view, 3> names = {"out", "a", "b"};
  return {.a = views("a"), .b = views("b"), .out = views(names[static_cast<size_t>(in_place)])};
}

std::vector<Expectation> AddCase::Expect(const AddArgs& args) const {
  const std::array<std::string, 3> names = {"out", "a", "b"};
  Expectation out{.operand = names[static_cast<size_t>(in_place)], .allowed = {0.0}};
  const std::vector<double> a = ReadAll(args.a);
  const std::vector<double> b = ReadAll(args.b);
  for (size_t i = 0; i < a.size(); ++i) {
    const double other = b[one_row ? i % static_cast<size_t>(columns) : i];
    // Rounded to f32 (exactly: f64 holds the sum of two f32 of like size), then to the output.
    const float sum = static_cast<float>(a[i]) + static_cast<float>(other);
    out.expected.push_back(RoundTo(args.out.dtype, sum));
  }
  return {std::move(out)};
}

std::string AddCase::DTypeLabel() const { return ConversionLabel(a_dtype, out_dtype); }

std::vector<AddCase> AddCase::Grid(GridSize size) {
  std::vector<AddCase> cases;
  for (const auto& [r, n] : Sizes(size)) {
    cases.push_back({.rows = r, .columns = n});
    cases.push_back({.rows = r, .columns = n, .one_row = true});
  }
  std::vector<AddCase> pairs =
      Pairwise<AddCase>()
          .Field(&AddCase::rows, {1, 5})
          .Field(&AddCase::columns, size == GridSize::kShort ? kShortColumns : kColumns)
          .Field(&AddCase::one_row, {false, true})
          .Field(&AddCase::a_dtype, FloatDTypes())
          .Field(&AddCase::b_dtype, FloatDTypes())
          .Field(&AddCase::out_dtype, FloatDTypes())
          .Field(&AddCase::in_place, {InPlace::kNo, InPlace::kFirst, InPlace::kSecond})
          .Field(&AddCase::a_layout, kInputs)
          .Field(&AddCase::b_layout, kInputs)
          .Field(&AddCase::out_layout, kOutputs)
          .Field(&AddCase::values,
                 {Values::kNormal, Values::kLarge, Values::kSmall, Values::kNonFinite})
          .Select(6600);
  Append(pairs, Pairwise<AddCase>()
                    .Field(&AddCase::rows, {1, 5})
                    .Field(&AddCase::columns, VectorColumns(size))
                    .Field(&AddCase::one_row, {false, true})
                    .Field(&AddCase::a_dtype, FloatDTypes())
                    .Field(&AddCase::b_dtype, FloatDTypes())
                    .Field(&AddCase::out_dtype, FloatDTypes())
                    .Field(&AddCase::in_place, {InPlace::kNo, InPlace::kFirst, InPlace::kSecond})
                    .Field(&AddCase::a_layout, kVectorInputs)
                    .Field(&AddCase::b_layout, kVectorInputs)
                    .Field(&AddCase::out_layout, kVectorOutputs)
                    .Select(6700));
  for (AddCase& c : pairs) {
    if (c.one_row && c.in_place == InPlace::kSecond) c.in_place = InPlace::kNo;
  }
  Append(cases, pairs);
  return cases;
}

AddCase AddCase::Random(Rng& rng) {
  AddCase c;
  RandomSize(c, rng);
  c.one_row = rng.Chance(0.3);
  c.a_dtype = rng.Pick(FloatDTypes());
  c.b_dtype = rng.Chance(0.8) ? c.a_dtype : rng.Pick(FloatDTypes());
  c.out_dtype = rng.Pick(FloatDTypes());
  c.a_layout = RandomLayout(rng);
  c.b_layout = RandomLayout(rng);
  return c;
}

// ---- cast

Operands CastCase::MakeOperands() const {
  Operands operands;
  operands.Input("x", x_dtype, {rows, columns}, x_layout, FillWith(values, SeedOf(seed, 0)));
  operands.Output("out", out_dtype, {rows, columns}, out_layout);
  return operands;
}

CastArgs CastCase::Bind(const Views& views) const { return {.x = views("x"), .out = views("out")}; }

std::vector<Expectation> CastCase::Expect(const CastArgs& args) const {
  Expectation out{.operand = "out", .allowed = {0.0}};
  if (IsBlockQuantized(out_dtype)) {
    out.bytes = reference::QuantizedBytes(args.x, out_dtype);
  } else {
    for (double x : ReadAll(args.x)) out.expected.push_back(RoundTo(out_dtype, x));
  }
  return {std::move(out)};
}

std::string CastCase::DTypeLabel() const { return ConversionLabel(x_dtype, out_dtype); }

// Rounded up to whole blocks where the columns are none.
static std::vector<CastCase> BlockCases(const std::vector<int64_t>& columns) {
  Pairwise<CastCase>::Settings directions;
  for (DType block : BlockDTypes()) {
    directions.push_back([=](CastCase& c) { c.x_dtype = block; });
    directions.push_back([=](CastCase& c) { c.out_dtype = block; });
  }
  std::vector<CastCase> cases =
      Pairwise<CastCase>()
          .Field(&CastCase::rows, {1, 5})
          .Field(&CastCase::columns, columns)
          .Group(directions)
          .Field(&CastCase::x_layout, kInputs)
          .Field(&CastCase::out_layout, kOutputs)
          .Field(&CastCase::values, {Values::kNormal, Values::kLarge, Values::kSmall,
                                     Values::kIntegers, Values::kZeros})
          .Select(6900);
  for (CastCase& c : cases) {
    c.columns = WholeBlocks(c.x_dtype, WholeBlocks(c.out_dtype, c.columns));
  }
  return cases;
}

std::vector<CastCase> CastCase::Grid(GridSize size) {
  const bool is_short = size == GridSize::kShort;
  std::vector<CastCase> cases = Pairwise<CastCase>()
                                    .Field(&CastCase::rows, {1, 5})
                                    .Field(&CastCase::columns, is_short ? kShortColumns : kColumns)
                                    .Field(&CastCase::x_dtype, FloatDTypes())
                                    .Field(&CastCase::out_dtype, FloatDTypes())
                                    .Field(&CastCase::x_layout, kInputs)
                                    .Field(&CastCase::out_layout, kOutputs)
                                    .Field(&CastCase::values, {Values::kNormal, Values::kLarge,
                                                               Values::kSmall, Values::kNonFinite})
                                    .Select(6800);
  Append(cases, Pairwise<CastCase>()
                    .Field(&CastCase::rows, {1, 5})
                    .Field(&CastCase::columns, VectorColumns(size))
                    .Field(&CastCase::x_dtype, FloatDTypes())
                    .Field(&CastCase::out_dtype, FloatDTypes())
                    .Field(&CastCase::x_layout, kVectorInputs)
                    .Field(&CastCase::out_layout, kVectorOutputs)
                    .Field(&CastCase::values, {Values::kNormal, Values::kLarge, Values::kNonFinite})
                    .Select(6850));
  Append(cases, BlockCases(is_short ? std::vector<int64_t>{64}
                                    : std::vector<int64_t>{0, 32, 64, 352, 32768 + 32}));
  return cases;
}

CastCase CastCase::Random(Rng& rng) {
  CastCase c;
  RandomSize(c, rng);
  c.x_dtype = rng.Pick(FloatDTypes());
  c.out_dtype = rng.Pick(FloatDTypes());
  if (rng.Chance(0.5)) {
    const DType block = rng.Pick(BlockDTypes());
    c.columns = WholeBlocks(block, c.columns);
    c.x_dtype = c.out_dtype = DType::kF32;
    (rng.Chance(0.5) ? c.x_dtype : c.out_dtype) = block;
  }
  c.x_layout = RandomLayout(rng);
  c.values = rng.Pick<Values>({Values::kNormal, Values::kLarge, Values::kSmall});
  return c;
}

}  // namespace tandem::cases
