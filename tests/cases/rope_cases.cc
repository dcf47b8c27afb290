#include "tests/cases/rope_cases.h"

#include <cmath>
#include <utility>

#include "tests/cases/pairwise.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using Case = RopeCase;

const std::vector<Layout> kInputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                     Layout::kBroadcast, Layout::kSpread};
const std::vector<Layout> kOutputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                      Layout::kSpread};

// head_dim, pairs
Pairwise<Case>::Settings Dimensions(const std::vector<std::pair<int64_t, int64_t>>& dimensions) {
  Pairwise<Case>::Settings settings;
  for (const auto& [head_dim, pairs] : dimensions) {
    settings.push_back([head_dim = head_dim, pairs = pairs](Case& c) {
      c.head_dim = head_dim;
      c.pairs = pairs;
    });
  }
  return settings;
}

std::vector<Case> Variants(const std::vector<std::pair<int64_t, int64_t>>& dimensions,
                           uint64_t seed) {
  return Pairwise<Case>()
      .Group(Dimensions(dimensions))
      .Field(&Case::batch, {1, 2})
      .Field(&Case::heads, {1, 3})
      .Field(&Case::tokens, {1, 5, 19})
      .Field(&Case::positions_per_sequence, {false, true})
      .Field(&Case::first_position, {0, 17, 100'000, 2'000'000'000})
      .Field(&Case::position_step, {1, 0, 7})
      .Field(&Case::pairing, {RopePairing::kInterleaved, RopePairing::kHalf})
      .Field(&Case::magnitude, {1.0f, 1.2f})
      .Field(&Case::x_dtype, FloatDTypes())
      .Field(&Case::out_dtype, FloatDTypes())
      .Field(&Case::in_place, {false, true})
      .Field(&Case::x_layout, kInputs)
      .Field(&Case::out_layout, kOutputs)
      .Field(&Case::values, {Values::kNormal, Values::kLarge, Values::kNonFinite})
      .Select(seed);
}

// Rows that vectors fit, all of them rotated.
std::vector<Case> VectorRows(const std::vector<int64_t>& head_dims) {
  return Pairwise<Case>()
      .Field(&Case::batch, {1, 2})
      .Field(&Case::heads, {1, 9, 33})
      .Field(&Case::tokens, {1, 7})
      .Field(&Case::head_dim, head_dims)
      .Field(&Case::positions_per_sequence, {false, true})
      .Field(&Case::first_position, {0, 100'000})
      .Field(&Case::pairing, {RopePairing::kInterleaved, RopePairing::kHalf})
      .Field(&Case::magnitude, {1.0f, 1.2f})
      .Field(&Case::x_dtype, FloatDTypes())
      .Field(&Case::out_dtype, FloatDTypes())
      .Field(&Case::in_place, {false, true})
      .Field(&Case::x_layout, {Layout::kContiguous, Layout::kAligned, Layout::kTransposed})
      .Field(&Case::out_layout, {Layout::kContiguous, Layout::kAligned, Layout::kTransposed})
      .Select(7600);
}

}  // namespace

Operands Case::MakeOperands() const {
  const int64_t rotated_pairs = pairs < 0 ? head_dim / 2 : pairs;
  const Shape shape = {batch, heads, tokens, head_dim};
  const Fill fill = FillWith(values, static_cast<uint64_t>(seed) * 16);
  Operands operands;
  if (in_place) {
    operands.InOut("x", x_dtype, shape, x_layout, fill);
  } else {
    operands.Input("x", x_dtype, shape, x_layout, fill);
    operands.Output("out", out_dtype, shape, out_layout);
  }
  const Fill position = [this](int64_t i) {
    return static_cast<double>(first_position + i * position_step);
  };
  operands.Input("positions", DType::kI32,
                 positions_per_sequence ? Shape{batch, tokens} : Shape{tokens},
                 x_layout == Layout::kSpread ? Layout::kSpread : Layout::kContiguous, position);
  operands.Input(
      "inv_freq", DType::kF32, {rotated_pairs}, Layout::kContiguous, [rotated_pairs](int64_t i) {
        return std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(rotated_pairs));
      });
  return operands;
}

RopeArgs Case::Bind(const Views& views) const {
  RopeArgs args;
  args.x = views("x");
  args.positions = views("positions");
  args.inv_freq = views("inv_freq");
  args.out = views(in_place ? "x" : "out");
  args.pairing = pairing;
  args.magnitude = magnitude;
  return args;
}

RotationOracle ExpectRotation(const TensorView& view, const RopeRotation& rotation,
                              DType out_type) {
  RotationOracle oracle;
  const std::vector<double> x = reference::ReadAll(view);
  const std::vector<double> positions = reference::ReadAll(rotation.positions);
  const std::vector<double> inv_freq = reference::ReadAll(rotation.inv_freq);
  const int64_t heads = view.dim(1), tokens = view.dim(2), head_dim = view.dim(3);
  const int64_t all_tokens = rotation.positions.dim(-1);
  const auto rotated = static_cast<int64_t>(2 * inv_freq.size());
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
    const int64_t d = i % head_dim;
    const int64_t token = i / head_dim % tokens + all_tokens - tokens;
    const int64_t sequence = i / (head_dim * tokens * heads);
    if (d >= rotated) {
      oracle.expected.push_back(reference::RoundTo(out_type, x[i]));
      oracle.allowed.push_back(0.0);
      continue;
    }
    const bool half = rotation.pairing == RopePairing::kHalf;
    const int64_t pair = half ? d % (rotated / 2) : d / 2;
    const bool first = half ? d < rotated / 2 : d % 2 == 0;
    const int64_t distance = half ? rotated / 2 : 1;
    const double other = x[first ? i + distance : i - distance];
    const bool per_sequence = rotation.positions.rank() == 2;
    const double position = positions[per_sequence ? sequence * all_tokens + token : token];
    const double angle = position * inv_freq[pair];
    double y =
        rotation.magnitude * (x[i] * std::cos(angle) + (first ? -other : other) * std::sin(angle));
    if (std::isinf(reference::RoundTo(out_type, y)))
      y = reference::RoundTo(out_type, y);  // overflow
    // The angle itself is rounded to f64; then cos and sin, two products and a sum to f32.
    const double terms = rotation.magnitude * (std::fabs(x[i]) + std::fabs(other));
    const double relative = 0x1p-22 + angle * 0x1p-51;
    oracle.expected.push_back(y);
    oracle.allowed.push_back(
        std::isfinite(terms) ? reference::HalfUlp(out_type, y) + terms * relative : 0.0);
  }
  return oracle;
}

std::vector<Expectation> Case::Expect(const RopeArgs& args) const {
  RotationOracle oracle = ExpectRotation(args.x, args.rotation(), args.out.dtype);
  return {{.operand = in_place ? "x" : "out",
           .expected = std::move(oracle.expected),
           .allowed = std::move(oracle.allowed)}};
}

std::string Case::DTypeLabel() const {
  return ConversionLabel(x_dtype, in_place ? x_dtype : out_dtype);
}

std::vector<Case> Case::Grid(GridSize size) {
  std::vector<Case> cases = {
      {.batch = 0}, {.tokens = 0}, {.head_dim = 5, .pairs = 0}, {.heads = 32, .tokens = 3}};
  if (size == GridSize::kShort) {
    Append(cases, Variants({{64, -1}, {80, -1}, {96, 32}}, 7500));
    Append(cases, VectorRows({128}));
    return cases;
  }
  Append(cases,
         Variants({{2, -1}, {64, -1}, {80, -1}, {128, -1}, {96, 24}, {70, 1}, {33, 16}}, 7000));
  Append(cases, VectorRows({16, 80, 128, 256, 1024}));
  cases.push_back({.batch = 2, .heads = 7, .tokens = 300, .seed = 2});
  return cases;
}

Case Case::Random(Rng& rng) {
  Case c;
  c.batch = rng.Integer(1, 3);
  c.heads = rng.Integer(1, 8);
  c.tokens = rng.Integer(1, 40);
  c.head_dim = rng.Integer(0, 140);
  c.pairs = rng.Chance(0.5) ? -1 : rng.Integer(0, c.head_dim / 2);
  c.positions_per_sequence = rng.Chance(0.5);
  c.first_position = rng.Integer(0, 200'000);
  c.pairing = static_cast<RopePairing>(rng.Integer(0, 1));
  c.x_dtype = rng.Pick(FloatDTypes());
  c.out_dtype = rng.Pick(FloatDTypes());
  c.in_place = rng.Chance(0.5);
  c.x_layout = rng.Chance(0.5) ? Layout::kContiguous : rng.Pick(kInputs);
  c.seed = rng.Integer(1, 1'000'000);
  return c;
}

}  // namespace tandem::cases
