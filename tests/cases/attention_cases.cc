#include "tests/cases/attention_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/cases/pairwise.h"
#include "tests/reference/attention.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using Case = AttentionCase;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// FlashAttention's tests allow this much beyond twice the naive error.
constexpr double kOutFloor = 1e-5;
// Relative to the magnitude of the log-sum-exp, or to 1.
constexpr double kLseTolerance = 1e-5;

// Normals, with NaN in row `nan_row` of dimension 2 (extents: rows x columns) if it exists.
Fill RowsOf(uint64_t seed, double deviation, int64_t rows, int64_t columns, int64_t nan_row) {
  return [rng = Rng(seed), deviation, rows, columns, nan_row](int64_t i) mutable {
    const double x = rng.Normal() * deviation;
    return i / columns % rows == nan_row ? kNan : x;
  };
}

// Keeps a case affordable for the f64 reference: sequences and heads shrink before lengths do.
Case Bounded(Case c, int64_t limit) {
  const auto work = [&] { return c.batch * c.q_heads * c.q_len * c.kv_len * c.head_dim; };
  if (work() > limit) c.batch = 1;
  if (work() > limit) {
    c.q_heads /= c.kv_heads;
    c.kv_heads = 1;
  }
  return c;
}

std::vector<Case> Bounded(std::vector<Case> cases, int64_t limit) {
  for (Case& c : cases) c = Bounded(c, limit);
  return cases;
}

void SetHeads(Case& c, int64_t kv_heads, int64_t group) {
  c.kv_heads = kv_heads;
  c.q_heads = kv_heads * group;
}

Pairwise<Case>::Settings Heads(const std::vector<std::pair<int64_t, int64_t>>& heads) {
  Pairwise<Case>::Settings settings;
  for (const auto& [kv_heads, group] : heads) {
    settings.push_back([=](Case& c) { SetHeads(c, kv_heads, group); });
  }
  return settings;
}

Pairwise<Case>::Settings Lengths(const std::vector<std::pair<int64_t, int64_t>>& lengths) {
  Pairwise<Case>::Settings settings;
  for (const auto& [q_len, kv_len] : lengths) {
    settings.push_back([=](Case& c) {
      c.q_len = q_len;
      c.kv_len = kv_len;
    });
  }
  return settings;
}

// q, kv, out
Pairwise<Case>::Settings DTypes(const std::vector<std::array<DType, 3>>& dtypes) {
  Pairwise<Case>::Settings settings;
  for (const auto& [q, kv, out] : dtypes) {
    settings.push_back([=](Case& c) {
      c.q_dtype = q;
      c.kv_dtype = kv;
      c.out_dtype = out;
    });
  }
  return settings;
}

Pairwise<Case>::Settings Windows(const std::vector<std::pair<int64_t, int64_t>>& windows) {
  Pairwise<Case>::Settings settings;
  for (const auto& [left, right] : windows) {
    settings.push_back([=](Case& c) {
      c.window_left = left;
      c.window_right = right;
    });
  }
  return settings;
}

Pairwise<Case>::Settings NewKeys(const std::vector<std::pair<int64_t, DType>>& news) {
  Pairwise<Case>::Settings settings;
  for (const auto& [length, dtype] : news) {
    settings.push_back([=](Case& c) {
      c.new_len = length;
      c.new_dtype = dtype;
    });
  }
  return settings;
}

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;

const std::vector<std::array<DType, 3>> kUsualDTypes = {{kF32, kF32, kF32},
                                                        {kF16, kF16, kF16},
                                                        {kBF16, kBF16, kBF16},
                                                        {kF32, kF16, kF32},
                                                        {kF32, kBF16, kF32}};
const std::vector<std::array<DType, 3>> kMixedDTypes = {
    {kF32, kF32, kF32},  {kF16, kF16, kF16},  {kBF16, kBF16, kBF16}, {kF32, kF16, kF32},
    {kBF16, kF16, kF32}, {kF16, kF32, kBF16}, {kF16, kBF16, kF16},   {kF32, kBF16, kF16}};

// What models do: heads next to each other or tokens next to each other, causal with a past.
std::vector<Case> UsualCases() {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Heads({{2, 1}, {3, 2}, {2, 4}, {1, 7}, {2, 8}, {1, 16}, {1, 1}}))
          .Field(&Case::head_dim, {32, 40, 64, 80, 96, 128, 192, 256})
          .Group(Lengths({{1, 1}, {1, 239}, {1, 1030}, {4, 515}, {33, 33}, {113, 203}, {40, 9}}))
          .Group(DTypes(kUsualDTypes))
          .Field(&Case::causal, {Causal::kBottomRight, Causal::kNone})
          .Field(&Case::lse, {false, true})
          .Field(&Case::q_layout, {Layout::kContiguous, Layout::kTransposed})
          .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kTransposed, Layout::kPadded})
          .Field(&Case::new_len, {-1, 1})
          .Select(1000);
  for (Case& c : cases) {
    c.out_layout = c.q_layout;
    c.new_dtype = c.q_dtype;
  }
  return cases;
}

// Every group size with every head_dim with every relation of the lengths; the remaining fields
// take turns.
std::vector<Case> ShapeProduct() {
  const auto lengths = Lengths({{0, 9}, {1, 1}, {1, 150}, {21, 21}, {13, 70}, {40, 17}});
  const auto dtypes = DTypes(kUsualDTypes);
  std::vector<Case> cases;
  for (int64_t group : {1, 2, 4, 7, 8, 16}) {
    for (int64_t head_dim : {32, 40, 64, 80, 96, 128, 192, 256}) {
      for (const auto& set_lengths : lengths) {
        const size_t turn = cases.size();
        Case c;
        SetHeads(c, 1 + static_cast<int64_t>(turn % 2), group);
        c.head_dim = head_dim;
        set_lengths(c);
        dtypes[turn % dtypes.size()](c);  // five: no divisor of the other counts
        c.lse = turn % 3 == 0;
        c.causal = turn % 7 == 0 ? Causal::kNone : Causal::kBottomRight;
        c.new_len = turn % 11 == 0 ? 1 : -1;
        c.seed = static_cast<int64_t>(6000 + turn);
        cases.push_back(c);
      }
    }
  }
  return cases;
}

// Everything the op allows.
std::vector<Case> UnusualCases() {
  return Pairwise<Case>()
      .Field(&Case::batch, {2, 1, 3})
      .Group(Heads({{1, 1}, {2, 2}, {1, 7}, {3, 4}, {5, 1}}))
      .Field(&Case::head_dim, {64, 1, 20, 59, 80, 111, 128})
      .Field(&Case::v_head_dim, {0, 48, 129})
      .Group(Lengths({{0, 5}, {1, 0}, {4, 0}, {1, 65}, {7, 7}, {19, 130}, {37, 12}, {70, 70}}))
      .Group(NewKeys({{-1, kF32}, {0, kF16}, {1, kBF16}, {5, kF32}, {9, kF16}}))
      .Group(DTypes(kMixedDTypes))
      .Field(&Case::causal, {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft})
      .Group(
          Windows({{-1, -1}, {0, -1}, {7, -1}, {16, 4}, {3, 0}, {-1, 2}, {INT64_MAX, INT64_MAX}}))
      .Field(&Case::scale, {std::nullopt, 0.25f, -0.25f, 0.0f})
      .Field(&Case::lse, {true, false})
      .Field(&Case::q_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                               Layout::kBroadcast, Layout::kSpread})
      .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                Layout::kBroadcast, Layout::kSpread})
      .Field(&Case::out_layout,
             {Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kSpread})
      .Field(&Case::values,
             {AttentionValues::kNormal, AttentionValues::kNormal, AttentionValues::kNanFirst,
              AttentionValues::kNanLast, AttentionValues::kNanQuery})
      .Select(2000);
}

// Each named for the bug it would show.
std::vector<Case> NamedCases() {
  return {
      // decoding: the cache is split over threads and merged
      {.q_heads = 8, .kv_heads = 2, .kv_len = 4099, .head_dim = 128, .kv_dtype = kF16, .lse = true},
      {.q_heads = 4, .kv_heads = 1, .kv_len = 2500, .new_len = 1, .kv_dtype = kBF16, .seed = 2},
      // long sums: f16 accumulation would show (relative L2 below 1e-3 is asked of f16)
      {.q_heads = 2, .kv_len = 16384, .kv_dtype = kF16, .seed = 3},
      {.q_heads = 2,
       .kv_len = 16384,
       .q_dtype = kF16,
       .kv_dtype = kF16,
       .out_dtype = kF16,
       .seed = 4},
      // prefill over several tiles in both directions
      {.q_heads = 2, .kv_heads = 1, .q_len = 300, .kv_len = 300, .lse = true, .seed = 5},
      {.q_heads = 2,
       .kv_heads = 1,
       .q_len = 150,
       .kv_len = 420,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .out_dtype = kBF16,
       .seed = 6},
      // more queries than keys: the first rows see nothing
      {.q_heads = 4, .kv_heads = 2, .q_len = 90, .kv_len = 30, .lse = true, .seed = 7},
      // only new keys, no cache
      {.q_heads = 4, .kv_heads = 2, .q_len = 6, .kv_len = 0, .new_len = 6, .lse = true, .seed = 8},
      // scores beyond the range of f16
      {.q_heads = 2,
       .q_len = 5,
       .kv_len = 77,
       .q_dtype = kF16,
       .kv_dtype = kF16,
       .out_dtype = kF16,
       .scale = 1.0f,
       .lse = true,
       .values = AttentionValues::kLarge,
       .seed = 9},
      {.q_heads = 2,
       .kv_len = 300,
       .q_dtype = kF16,
       .kv_dtype = kF16,
       .out_dtype = kF16,
       .scale = 1.0f,
       .values = AttentionValues::kLarge,
       .seed = 10},
      // NaN that nobody may see: beyond a top-left causal mask, left of a window
      {.q_heads = 2,
       .q_len = 20,
       .kv_len = 64,
       .causal = Causal::kTopLeft,
       .lse = true,
       .values = AttentionValues::kNanLast,
       .seed = 11},
      {.q_heads = 2,
       .kv_len = 600,
       .window_left = 100,
       .lse = true,
       .values = AttentionValues::kNanFirst,
       .seed = 12},
      {.q_heads = 2,
       .q_len = 70,
       .kv_len = 70,
       .lse = true,
       .values = AttentionValues::kNanLast,
       .seed = 13},
      // NaN that must be seen
      {.q_heads = 2, .kv_len = 500, .lse = true, .values = AttentionValues::kNanFirst, .seed = 14},
      // one cache shared by all sequences
      {.batch = 3,
       .q_heads = 4,
       .kv_heads = 2,
       .kv_len = 140,
       .kv_layout = Layout::kBroadcast,
       .seed = 15},
  };
}

}  // namespace

Operands Case::MakeOperands() const {
  const int64_t dv = v_head_dim ? v_head_dim : head_dim;
  const double spread = values == AttentionValues::kLarge ? 100.0 : 1.0;
  const int64_t last = kv_len + std::max<int64_t>(new_len, 0) - 1;
  const int64_t nan_key = values == AttentionValues::kNanFirst  ? 0
                          : values == AttentionValues::kNanLast ? last
                                                                : -1;
  const int64_t nan_query = values == AttentionValues::kNanQuery ? 0 : -1;
  const auto random = static_cast<uint64_t>(seed) * 16;
  Operands operands;
  operands.Input("q", q_dtype, {batch, q_heads, q_len, head_dim}, q_layout,
                 RowsOf(random, spread, q_len, head_dim, nan_query));
  operands.Input("k", kv_dtype, {batch, kv_heads, kv_len, head_dim}, kv_layout,
                 RowsOf(random + 1, spread, kv_len, head_dim, nan_key));
  operands.Input("v", kv_dtype, {batch, kv_heads, kv_len, dv}, kv_layout,
                 RowsOf(random + 2, 1.0, kv_len, dv, nan_key));
  if (new_len >= 0) {
    const int64_t nan_new = nan_key < 0 ? -1 : nan_key - kv_len;
    operands.Input("k_new", new_dtype, {batch, kv_heads, new_len, head_dim}, q_layout,
                   RowsOf(random + 3, spread, new_len, head_dim, nan_new));
    operands.Input("v_new", new_dtype, {batch, kv_heads, new_len, dv}, q_layout,
                   RowsOf(random + 4, 1.0, new_len, dv, nan_new));
  }
  operands.Output("out", out_dtype, {batch, q_heads, q_len, dv}, out_layout);
  if (lse) operands.Output("lse", DType::kF32, {batch, q_heads, q_len}, out_layout);
  return operands;
}

AttentionArgs Case::Bind(const Views& views) const {
  AttentionArgs args;
  args.q = views("q");
  args.k = views("k");
  args.v = views("v");
  args.k_new = views("k_new");
  args.v_new = views("v_new");
  args.out = views("out");
  args.lse = views("lse");
  args.scale = scale;
  args.causal = causal;
  args.window_left = window_left;
  args.window_right = window_right;
  return args;
}

std::vector<Expectation> Case::Expect(const AttentionArgs& args) const {
  const reference::AttentionResult oracle = reference::Attention(args);
  DType storage = reference::Coarser(q_dtype, kv_dtype);
  if (new_len >= 0) storage = reference::Coarser(storage, new_dtype);
  // Where the storage format overflows it is no measure: the scores are f32 by contract.
  if (values == AttentionValues::kLarge) storage = DType::kF32;
  const reference::AttentionResult naive = reference::NaiveAttention(args, storage);

  Expectation out{.operand = "out", .expected = oracle.out};
  out.allowed = AllowedErrors(oracle.out, naive.out, out_dtype, kOutFloor);
  const int64_t dv = args.v_head_dim();
  for (size_t row = 0; row < oracle.masked.size(); ++row) {
    // A row that sees nothing is 0, exactly.
    if (oracle.masked[row]) std::fill_n(out.allowed.begin() + row * dv, dv, 0.0);
  }
  if (storage == DType::kF16 && out_dtype != DType::kBF16) out.max_relative_l2 = 1e-3;
  std::vector<Expectation> expectations = {std::move(out)};
  if (lse) {
    Expectation sum{.operand = "lse", .expected = oracle.lse};
    sum.allowed = AllowedErrors(oracle.lse, naive.lse, DType::kF32, 0.0);
    for (size_t i = 0; i < oracle.lse.size(); ++i) {
      if (!std::isfinite(oracle.lse[i])) continue;
      sum.allowed[i] += kLseTolerance * std::max(1.0, std::fabs(oracle.lse[i]));
    }
    expectations.push_back(std::move(sum));
  }
  return expectations;
}

std::string Case::DTypeLabel() const {
  std::string label(Name(q_dtype));
  if (kv_dtype != q_dtype) label += " x " + std::string(Name(kv_dtype));
  return label;
}

std::vector<Case> Case::Grid(GridSize size) {
  std::vector<Case> cases = NamedCases();
  if (size == GridSize::kFull) {
    Append(cases, Bounded(UsualCases(), 30'000'000));
    Append(cases, Bounded(UnusualCases(), 10'000'000));
    Append(cases, ShapeProduct());
    return cases;
  }
  std::erase_if(cases, [](const Case& c) { return c.kv_len > 5000 || c.q_len > 200; });
  Append(cases, Bounded(Pairwise<Case>()
                            .Group(Heads({{2, 1}, {2, 4}, {1, 7}}))
                            .Field(&Case::head_dim, {64, 80, 128})
                            .Group(Lengths({{1, 129}, {33, 70}, {12, 5}}))
                            .Group(DTypes(kUsualDTypes))
                            .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kPadded})
                            .Field(&Case::lse, {false, true})
                            .Select(500),
                        2'000'000));
  return cases;
}

Case Case::Random(Rng& rng) {
  static constexpr auto kAny = [](Rng& r) { return r.Pick<DType>({kF32, kF16, kBF16}); };
  static const std::vector<Layout> kLayouts = {Layout::kContiguous, Layout::kContiguous,
                                               Layout::kPadded,     Layout::kTransposed,
                                               Layout::kBroadcast,  Layout::kSpread};
  Case c;
  c.batch = rng.Integer(1, 3);
  SetHeads(c, rng.Integer(1, 4), rng.Integer(1, 9));
  c.q_len = rng.Chance(0.4) ? 1 : rng.Integer(0, 80);
  c.kv_len = rng.Chance(0.2) ? c.q_len : rng.Integer(0, 300);
  c.new_len = rng.Chance(0.5) ? -1 : rng.Integer(0, 10);
  c.head_dim = rng.Chance(0.5) ? 16 * rng.Integer(1, 16) : rng.Integer(1, 200);
  c.v_head_dim = rng.Chance(0.7) ? 0 : rng.Integer(1, 200);
  c.q_dtype = kAny(rng);
  c.kv_dtype = rng.Chance(0.5) ? c.q_dtype : kAny(rng);
  c.new_dtype = rng.Chance(0.5) ? c.kv_dtype : kAny(rng);
  c.out_dtype = rng.Chance(0.5) ? c.q_dtype : kAny(rng);
  c.causal = rng.Pick<Causal>({Causal::kNone, Causal::kBottomRight, Causal::kTopLeft});
  c.window_left = rng.Chance(0.6) ? -1 : rng.Integer(0, 100);
  c.window_right = rng.Chance(0.8) ? -1 : rng.Integer(0, 50);
  c.lse = rng.Chance(0.5);
  c.q_layout = rng.Pick(kLayouts);
  c.kv_layout = rng.Pick(kLayouts);
  c.out_layout = rng.Pick(kLayouts);
  c.seed = rng.Integer(1, 1'000'000);
  return Bounded(c, 10'000'000);
}

}  // namespace tandem::cases
