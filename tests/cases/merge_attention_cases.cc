#include "tests/cases/merge_attention_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/cases/pairwise.h"
#include "tests/cases/values.h"
#include "tests/reference/attention.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using Case = MergeAttentionCase;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kNegInf = -std::numeric_limits<double>::infinity();
// A few f32 roundings of values of a few units.
constexpr double kOutFloor = 2e-6;
constexpr double kLseTolerance = 1e-6;  // relative to its magnitude, or to 1
constexpr int64_t kKeyDim = 16;

// The problem that is cut into parts.
struct Whole {
  std::vector<float> q, k, v;
  std::vector<uint8_t> mask;
  std::vector<int64_t> cuts;  // part p has keys cuts[p] .. cuts[p + 1] - 1
  AttentionArgs args;
};

bool RowSeesPart(const Case& c, Rng& rng, int64_t row, int64_t part, int64_t only) {
  switch (c.keys) {
    case MergeKeys::kAll:
      return true;
    case MergeKeys::kSomeParts:
      return rng.Chance(0.5) && row > 0;
    case MergeKeys::kOnePart:
      return part == only;
    case MergeKeys::kNothing:
      break;
  }
  return false;
}

Whole MakeWhole(const Case& c) {
  Whole whole;
  Rng rng(static_cast<uint64_t>(c.seed));
  const auto fill = [&](std::vector<float>& data, int64_t count, double deviation) {
    for (int64_t i = 0; i < count; ++i) {
      data.push_back(static_cast<float>(rng.Normal() * deviation));
    }
  };
  const int64_t rows = c.batch * c.heads * c.q_len;
  const double deviation = c.values == MergeValues::kLarge   ? 300.0
                           : c.values == MergeValues::kZeros ? 0.0
                                                             : 1.0;
  fill(whole.q, rows * kKeyDim, deviation);
  fill(whole.k, c.batch * c.kv_len * kKeyDim, 1.0);
  fill(whole.v, c.batch * c.kv_len * c.head_dim, 1.0);
  if (c.values == MergeValues::kNan && c.kv_len > 0) whole.k[0] = static_cast<float>(kNan);

  whole.cuts = {0};
  for (int64_t p = 1; p < c.parts; ++p) whole.cuts.push_back(rng.Integer(0, c.kv_len));
  whole.cuts.push_back(c.kv_len);
  std::sort(whole.cuts.begin(), whole.cuts.end());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t only = rng.Integer(0, c.parts - 1);
    for (int64_t p = 0; p < c.parts; ++p) {
      const auto own = static_cast<size_t>(p);
      whole.mask.insert(whole.mask.end(),
                        static_cast<size_t>(whole.cuts[own + 1] - whole.cuts[own]),
                        RowSeesPart(c, rng, row, p, only));
    }
  }
  AttentionArgs& args = whole.args;
  args.q = MakeView(whole.q.data(), DType::kF32, {c.batch, c.heads, c.q_len, kKeyDim});
  args.k = MakeView(whole.k.data(), DType::kF32, {c.batch, 1, c.kv_len, kKeyDim});
  args.v = MakeView(whole.v.data(), DType::kF32, {c.batch, 1, c.kv_len, c.head_dim});
  args.mask = MakeView(whole.mask.data(), DType::kBool, {c.batch, c.heads, c.q_len, c.kv_len});
  args.causal = Causal::kNone;
  return whole;
}

reference::AttentionResult AttentionOf(const Whole& whole, int64_t begin, int64_t end) {
  AttentionArgs args = whole.args;
  args.k = Slice(args.k, 2, begin, end - begin);
  args.v = Slice(args.v, 2, begin, end - begin);
  args.mask = Slice(args.mask, 3, begin, end - begin);
  return reference::Attention(args);
}

std::vector<Case> Selection(const std::vector<int64_t>& parts, uint64_t seed) {
  return Pairwise<Case>()
      .Field(&Case::parts, parts)
      .Field(&Case::batch, {1, 2})
      .Field(&Case::heads, {1, 3, 8})
      .Field(&Case::q_len, {1, 2, 17, 0})
      .Field(&Case::kv_len, {60, 1, 0, 300})
      .Field(&Case::head_dim, {64, 128, 1, 80, 200})
      .Field(&Case::part_dtype, FloatDTypes())
      .Field(&Case::out_dtype, FloatDTypes())
      .Field(&Case::mixed, {false, false, false, false, true})
      .Field(&Case::lse, {true, false})
      .Field(&Case::in_place, {false, false, false, true})
      .Field(&Case::keys,
             {MergeKeys::kAll, MergeKeys::kSomeParts, MergeKeys::kOnePart, MergeKeys::kNothing})
      .Field(&Case::values,
             {MergeValues::kNormal, MergeValues::kLarge, MergeValues::kZeros, MergeValues::kNan})
      .Field(&Case::part_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                  Layout::kBroadcast, Layout::kSpread})
      .Field(&Case::out_layout,
             {Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kSpread})
      .Select(seed);
}

}  // namespace

Operands Case::MakeOperands() const {
  Operands operands;
  const Shape out_shape = {batch, heads, q_len, head_dim}, lse_shape = {batch, heads, q_len};
  if (parts < 1 || parts > 4096 || batch < 0 || heads < 0 || q_len < 0 || kv_len < 0) {
    operands.Output("out", out_dtype, {-1}, out_layout);
    return operands;
  }
  const Whole whole = MakeWhole(*this);
  for (int64_t p = 0; p < parts; ++p) {
    const auto own = static_cast<size_t>(p);
    const auto result = AttentionOf(whole, whole.cuts[own], whole.cuts[own + 1]);
    const Fill lse_fill = [&](int64_t i) { return result.lse[static_cast<size_t>(i)]; };
    const Fill out_fill = [&](int64_t i) {
      const bool empty = result.lse[static_cast<size_t>(i / head_dim)] == kNegInf;
      return empty ? kNan : result.out[static_cast<size_t>(i)];
    };
    const std::string out_name = absl::StrCat("out_part", p),
                      lse_name = absl::StrCat("lse_part", p);
    const DType dtype = mixed && p % 2 == 1 ? DType::kF16 : part_dtype;
    if (in_place && p == 0) {
      operands.InOut(out_name, out_dtype, out_shape, out_layout, out_fill);
    } else {
      operands.Input(out_name, dtype, out_shape, SharedLayout(), out_fill);
    }
    if (in_place && p == 0 && lse) {
      operands.InOut(lse_name, DType::kF32, lse_shape, out_layout, lse_fill);
    } else {
      operands.Input(lse_name, DType::kF32, lse_shape, SharedLayout(), lse_fill);
    }
  }
  if (!in_place) {
    operands.Output("out", out_dtype, out_shape, out_layout);
    if (lse) operands.Output("lse", DType::kF32, lse_shape, out_layout);
  }
  return operands;
}

MergeAttentionArgs Case::Bind(const Views& views) const {
  MergeAttentionArgs args;
  args.out_parts = views.All("out_part");
  args.lse_parts = views.All("lse_part");
  args.out = views(in_place ? "out_part0" : "out");
  if (lse) args.lse = views(in_place ? "lse_part0" : "lse");
  return args;
}

std::vector<Expectation> Case::Expect(const MergeAttentionArgs& args) const {
  const Whole whole = MakeWhole(*this);
  const reference::AttentionResult oracle = AttentionOf(whole, 0, kv_len);

  // The straightforward implementation: the equation in f32, on the parts as they are stored.
  const size_t rows = oracle.lse.size(), columns = static_cast<size_t>(head_dim);
  std::vector<std::vector<double>> outs, lses;
  for (const TensorView& part : args.out_parts) outs.push_back(reference::ReadAll(part));
  for (const TensorView& part : args.lse_parts) lses.push_back(reference::ReadAll(part));
  std::vector<double> naive_out(rows * columns), naive_lse(rows);
  for (size_t row = 0; row < rows; ++row) {
    auto largest = static_cast<float>(kNegInf);
    for (const auto& lse_part : lses)
      largest = std::max(largest, static_cast<float>(lse_part[row]));
    float sum = 0.0f;
    for (const auto& lse_part : lses) {
      if (lse_part[row] != kNegInf) sum += std::exp(static_cast<float>(lse_part[row]) - largest);
    }
    naive_lse[row] = sum == 0.0f ? kNegInf : static_cast<double>(largest + std::log(sum));
    for (size_t n = 0; n < columns; ++n) {
      float value = 0.0f;
      for (size_t p = 0; p < outs.size(); ++p) {
        if (lses[p][row] == kNegInf) continue;
        value += std::exp(static_cast<float>(lses[p][row]) - static_cast<float>(naive_lse[row])) *
                 static_cast<float>(outs[p][row * columns + n]);
      }
      naive_out[row * columns + n] = reference::RoundTo(out_dtype, value);
    }
  }

  Expectation out{.operand = in_place ? "out_part0" : "out", .expected = oracle.out};
  out.allowed = AllowedErrors(oracle.out, naive_out, out_dtype, kOutFloor);
  for (size_t row = 0; row < rows; ++row) {
    // A row that sees nothing is 0, exactly.
    if (oracle.masked[row]) std::fill_n(out.allowed.begin() + row * columns, columns, 0.0);
  }
  std::vector<Expectation> expectations = {std::move(out)};
  if (lse) {
    Expectation sum{.operand = in_place ? "lse_part0" : "lse", .expected = oracle.lse};
    sum.allowed = AllowedErrors(oracle.lse, naive_lse, DType::kF32, 0.0);
    for (size_t i = 0; i < rows; ++i) {
      if (!std::isfinite(oracle.lse[i])) continue;
      sum.allowed[i] += kLseTolerance * std::max(1.0, std::fabs(oracle.lse[i]));
    }
    expectations.push_back(std::move(sum));
  }
  return expectations;
}

std::string Case::DTypeLabel() const { return ConversionLabel(part_dtype, out_dtype); }

// Stride 0 over the batch would make its sequences one.
Layout Case::SharedLayout() const {
  return part_layout == Layout::kBroadcast && batch > 1 ? Layout::kPadded : part_layout;
}

std::vector<Case> Case::Grid(GridSize size) {
  // FlashAttention's combine: 1 to 133 parts, some of them empty.
  std::vector<Case> cases = {
      {.parts = 133, .heads = 4, .kv_len = 90, .head_dim = 128, .seed = 2},
      {.parts = 133,
       .heads = 2,
       .q_len = 3,
       .kv_len = 500,
       .keys = MergeKeys::kSomeParts,
       .seed = 3},
      // lse 0 is a value, not "unset"
      {.parts = 60, .heads = 2, .kv_len = 60, .values = MergeValues::kZeros, .seed = 4},
      // exp(a - b) overflows in log(1 + exp(a - b))
      {.parts = 2, .heads = 8, .values = MergeValues::kLarge, .seed = 5},
      {.parts = 7, .heads = 8, .values = MergeValues::kLarge, .seed = 6},
      // nobody sees anything
      {.parts = 3, .heads = 2, .keys = MergeKeys::kNothing, .seed = 7},
      {.parts = 1, .kv_len = 0, .seed = 8},
      // one part is a copy
      {.parts = 1, .heads = 3, .q_len = 5, .seed = 9},
      {.parts = 4, .heads = 3, .q_len = 5, .in_place = true, .seed = 10},
  };
  if (size == GridSize::kShort) {
    Append(cases, Selection({2, 1, 9}, 500));
    return cases;
  }
  Append(cases, Selection({2, 1, 3, 4, 5, 8, 16, 17, 33, 64, 100, 133}, 1000));
  Append(cases, Selection({2, 3, 6, 40}, 2000));
  return cases;
}

Case Case::Random(Rng& rng) {
  Case c;
  c.parts = rng.Chance(0.8) ? rng.Integer(1, 12) : rng.Integer(13, 133);
  c.batch = rng.Integer(1, 3);
  c.heads = rng.Integer(1, 9);
  c.q_len = rng.Chance(0.5) ? 1 : rng.Integer(0, 20);
  c.kv_len = rng.Integer(0, 150);
  c.head_dim = rng.Integer(1, 150);
  c.part_dtype = rng.Pick(FloatDTypes());
  c.out_dtype = rng.Chance(0.5) ? c.part_dtype : rng.Pick(FloatDTypes());
  c.mixed = rng.Chance(0.1);
  c.lse = rng.Chance(0.7);
  c.in_place = rng.Chance(0.2);
  c.keys = static_cast<MergeKeys>(rng.Integer(0, 3));
  c.values = static_cast<MergeValues>(rng.Integer(0, 3));
  c.part_layout = static_cast<Layout>(rng.Integer(0, 4));
  c.out_layout = rng.Pick<Layout>(
      {Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kSpread});
  c.seed = rng.Integer(1, 1'000'000);
  return c;
}

}  // namespace tandem::cases
