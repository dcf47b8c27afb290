#include "tests/cases/lookup_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/cases/pairwise.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using reference::ReadAll;
using reference::RoundTo;

const std::vector<Layout> kInputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                     Layout::kBroadcast, Layout::kSpread};
const std::vector<Layout> kOutputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                      Layout::kSpread};

uint64_t SeedOf(int64_t seed, int operand) {
  return (static_cast<uint64_t>(seed) << 8) + static_cast<uint64_t>(operand);
}

Layout RandomLayout(Rng& rng) { return rng.Chance(0.6) ? Layout::kContiguous : rng.Pick(kInputs); }

}  // namespace

// ---- embedding

Operands EmbeddingCase::MakeOperands() const {
  Operands operands;
  operands.Input("table", table_dtype, {vocabulary, columns}, table_layout,
                 FillWith(Values::kNormal, SeedOf(seed, 0)));
  const Fill id = [*this, rng = Rng(SeedOf(seed, 1))](int64_t i) mutable {
    const int64_t good = rng.Integer(0, vocabulary - 1);
    if (i < tokens - 1 || bad_id == BadId::kNone) return static_cast<double>(good);
    return static_cast<double>(bad_id == BadId::kNegative ? -1 : vocabulary);
  };
  operands.Input("ids", DType::kI32, {tokens}, ids_layout, id);
  operands.Output("out", out_dtype, {tokens, columns}, out_layout);
  return operands;
}

EmbeddingArgs EmbeddingCase::Bind(const Views& views) const {
  return {.table = views("table"), .ids = views("ids"), .out = views("out")};
}

std::vector<Expectation> EmbeddingCase::Expect(const EmbeddingArgs& args) const {
  Expectation out{.operand = "out", .allowed = {0.0}};
  if (bad_id != BadId::kNone) return {};
  const std::vector<double> table = ReadAll(args.table);
  for (double id : ReadAll(args.ids)) {
    for (int64_t n = 0; n < columns; ++n) {
      const double value = table[static_cast<size_t>(static_cast<int64_t>(id) * columns + n)];
      out.expected.push_back(RoundTo(out_dtype, value));
    }
  }
  return {std::move(out)};
}

absl::StatusCode EmbeddingCase::ExpectedCode() const {
  return bad_id == BadId::kNone ? absl::StatusCode::kOk : absl::StatusCode::kInvalidArgument;
}

std::string EmbeddingCase::DTypeLabel() const { return ConversionLabel(table_dtype, out_dtype); }

std::vector<EmbeddingCase> EmbeddingCase::Grid(GridSize size) {
  std::vector<EmbeddingCase> cases = {
      {.tokens = 0},
      {.columns = 0},
      {.vocabulary = 1, .tokens = 3, .columns = 5},
      {.tokens = 4, .bad_id = BadId::kNegative},
      {.tokens = 4, .bad_id = BadId::kTooLarge},
      {.tokens = 1, .table_dtype = DType::kQ8_0, .bad_id = BadId::kTooLarge},
  };
  if (size == GridSize::kFull) cases.push_back({.vocabulary = 300, .tokens = 70, .columns = 1000});
  std::vector<DType> tables = FloatDTypes();
  Append(tables, BlockDTypes());
  const auto pairs = [&](const std::vector<DType>& dtypes, const std::vector<int64_t>& columns,
                         uint64_t first_seed) {
    std::vector<EmbeddingCase> selected =
        Pairwise<EmbeddingCase>()
            .Field(&EmbeddingCase::tokens, {1, 6})
            .Field(&EmbeddingCase::columns, columns)
            .Field(&EmbeddingCase::table_dtype, dtypes)
            .Field(&EmbeddingCase::out_dtype, FloatDTypes())
            .Field(&EmbeddingCase::table_layout, kInputs)
            .Field(&EmbeddingCase::ids_layout, {Layout::kContiguous, Layout::kSpread})
            .Field(&EmbeddingCase::out_layout, kOutputs)
            .Select(first_seed);
    for (EmbeddingCase& c : selected) c.columns = WholeBlocks(c.table_dtype, c.columns);
    return selected;
  };
  Append(cases, pairs(tables, {32, 96}, 8000));
  if (size == GridSize::kFull) Append(cases, pairs(FloatDTypes(), {1, 17, 100}, 8100));
  // Rows that vectors fit.
  Append(cases, Pairwise<EmbeddingCase>()
                    .Field(&EmbeddingCase::tokens, {1, 6})
                    .Field(&EmbeddingCase::columns, {8, 256, 520, 4096})
                    .Field(&EmbeddingCase::table_dtype, FloatDTypes())
                    .Field(&EmbeddingCase::out_dtype, FloatDTypes())
                    .Field(&EmbeddingCase::table_layout, {Layout::kContiguous, Layout::kAligned})
                    .Field(&EmbeddingCase::out_layout, {Layout::kContiguous, Layout::kAligned})
                    .Select(8200));
  return cases;
}

EmbeddingCase EmbeddingCase::Random(Rng& rng) {
  EmbeddingCase c;
  c.vocabulary = rng.Integer(1, 100);
  c.tokens = rng.Integer(0, 50);
  c.table_dtype = rng.Pick(rng.Chance(0.4) ? FloatDTypes() : BlockDTypes());
  c.columns = WholeBlocks(c.table_dtype, 32 * rng.Integer(0, 40));
  c.out_dtype = rng.Pick(FloatDTypes());
  c.table_layout = RandomLayout(rng);
  c.seed = rng.Integer(1, 1'000'000);
  return c;
}

// ---- argmax

Operands ArgMaxCase::MakeOperands() const {
  Operands operands;
  operands.Input("x", x_dtype, {rows, columns}, x_layout, FillWith(values, SeedOf(seed, 0)));
  operands.Output("out", DType::kI32, {rows}, out_layout);
  return operands;
}

ArgMaxArgs ArgMaxCase::Bind(const Views& views) const {
  return {.x = views("x"), .out = views("out")};
}

std::vector<Expectation> ArgMaxCase::Expect(const ArgMaxArgs& args) const {
  Expectation out{.operand = "out", .allowed = {0.0}};
  const std::vector<double> x = ReadAll(args.x);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<int64_t> order;
    for (int64_t n = 0; n < columns; ++n) {
      if (!std::isnan(x[static_cast<size_t>(r * columns + n)])) order.push_back(n);
    }
    const auto best = std::max_element(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return x[static_cast<size_t>(r * columns + a)] < x[static_cast<size_t>(r * columns + b)];
    });
    out.expected.push_back(best == order.end() ? 0.0 : static_cast<double>(*best));
  }
  return {std::move(out)};
}

std::string ArgMaxCase::DTypeLabel() const { return std::string(Name(x_dtype)); }

std::vector<ArgMaxCase> ArgMaxCase::Grid(GridSize size) {
  std::vector<ArgMaxCase> cases = {{.rows = 0}, {.rows = 3, .columns = 1}};
  if (size == GridSize::kFull) cases.push_back({.rows = 2, .columns = 32003});
  const std::vector<int64_t> columns = size == GridSize::kShort
                                           ? std::vector<int64_t>{17, 600}
                                           : std::vector<int64_t>{2, 15, 16, 33, 511, 513, 2000};
  Append(cases,
         Pairwise<ArgMaxCase>()
             .Field(&ArgMaxCase::rows, {1, 7})
             .Field(&ArgMaxCase::columns, columns)
             .Field(&ArgMaxCase::x_dtype, FloatDTypes())
             .Field(&ArgMaxCase::x_layout, kInputs)
             .Field(&ArgMaxCase::out_layout, {Layout::kContiguous, Layout::kSpread})
             .Field(&ArgMaxCase::values, {Values::kNormal, Values::kIntegers, Values::kZeros,
                                          Values::kNonFinite, Values::kMasked, Values::kOnlyNan})
             .Select(8500));
  Append(cases, Pairwise<ArgMaxCase>()  // rows that vectors fit, cut into several pieces
                    .Field(&ArgMaxCase::rows, {1, 3})
                    .Field(&ArgMaxCase::columns, size == GridSize::kShort
                                                     ? std::vector<int64_t>{8200}
                                                     : std::vector<int64_t>{8, 4100, 8200, 50257})
                    .Field(&ArgMaxCase::x_dtype, FloatDTypes())
                    .Field(&ArgMaxCase::x_layout, {Layout::kContiguous, Layout::kAligned})
                    .Field(&ArgMaxCase::values, {Values::kNormal, Values::kIntegers, Values::kZeros,
                                                 Values::kMasked, Values::kOnlyNan})
                    .Select(8550));
  return cases;
}

ArgMaxCase ArgMaxCase::Random(Rng& rng) {
  ArgMaxCase c;
  c.rows = rng.Integer(0, 20);
  c.columns = rng.Integer(1, 3000);
  c.x_dtype = rng.Pick(FloatDTypes());
  c.x_layout = RandomLayout(rng);
  c.values =
      rng.Pick<Values>({Values::kNormal, Values::kIntegers, Values::kNonFinite, Values::kMasked});
  c.seed = rng.Integer(1, 1'000'000);
  return c;
}

// ---- sample

Operands SampleCase::MakeOperands() const {
  Operands operands;
  const Fill fill = [factor = static_cast<double>(spread),
                     values_of = FillWith(values, SeedOf(seed, 0))](int64_t i) mutable {
    return factor * values_of(i);
  };
  operands.Input("logits", logits_dtype, {rows, columns}, logits_layout, fill);
  operands.Input("uniform", DType::kF32, {rows}, Layout::kContiguous,
                 [rng = Rng(SeedOf(seed, 1))](int64_t i) mutable {
                   const double u = rng.Uniform();
                   return i == 1 ? 0.0 : i == 2 ? 1.0 - 0x1p-24 : u;
                 });
  operands.Output("out", DType::kI32, {rows}, Layout::kContiguous);
  return operands;
}

SampleArgs SampleCase::Bind(const Views& views) const {
  return {.logits = views("logits"),
          .uniform = views("uniform"),
          .out = views("out"),
          .temperature = temperature,
          .top_k = top_k,
          .top_p = top_p};
}

std::vector<Expectation> SampleCase::Expect(const SampleArgs& args) const {
  struct Token {
    double logit;
    double weight;
    int64_t index;
  };
  Expectation out{.operand = "out", .allowed = {0.0}};
  const std::vector<double> logits = ReadAll(args.logits);
  const std::vector<double> uniform = ReadAll(args.uniform);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<Token> tokens;
    for (int64_t n = 0; n < columns; ++n) {
      const double logit = logits[static_cast<size_t>(r * columns + n)];
      if (!std::isnan(logit) && logit != -std::numeric_limits<double>::infinity()) {
        tokens.push_back({logit, 0.0, n});
      }
    }
    if (tokens.empty()) {
      out.expected.push_back(0.0);
      continue;
    }
    std::sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.index < b.index;
    });
    size_t kept = tokens.size();
    if (top_k > 0) kept = std::min(kept, static_cast<size_t>(top_k));
    if (temperature == 0.0f) kept = 1;
    double total = 0.0;
    for (size_t i = 0; i < kept; ++i) {
      const double below = tokens[0].logit - tokens[i].logit;  // NaN: both infinite
      const bool largest = tokens[i].logit == tokens[0].logit;
      tokens[i].weight = largest ? 1.0 : std::exp(-below / static_cast<double>(temperature));
      total += tokens[i].weight;
    }
    if (top_p < 1.0f) {
      double sum = 0.0;
      size_t reached = 0;
      while (reached < kept && (reached == 0 || sum < static_cast<double>(top_p) * total)) {
        sum += tokens[reached++].weight;
      }
      kept = reached;
      total = sum;
    }
    double running = 0.0;
    size_t chosen = 0;
    for (; chosen + 1 < kept; ++chosen) {
      running += tokens[chosen].weight;
      if (running > uniform[static_cast<size_t>(r)] * total) break;
    }
    out.expected.push_back(static_cast<double>(tokens[chosen].index));
  }
  return {std::move(out)};
}

std::string SampleCase::DTypeLabel() const { return std::string(Name(logits_dtype)); }

std::vector<SampleCase> SampleCase::Grid(GridSize size) {
  std::vector<SampleCase> cases = {
      {.rows = 0},
      {.rows = 3, .columns = 1},
      {.rows = 40, .columns = 20},
      {.rows = 3, .columns = 50, .top_k = 1},
      {.rows = 9, .columns = 3000, .top_k = 40, .top_p = 0.95f, .spread = 4.0f},
  };
  if (size == GridSize::kFull) {
    // flat: the pick has to grow to the whole row; peaked: it need not
    cases.push_back({.rows = 3, .columns = 32003, .spread = 0.01f});
    cases.push_back({.rows = 3, .columns = 32003, .top_p = 0.9f, .spread = 0.01f});
    cases.push_back({.rows = 5, .columns = 32003, .top_p = 0.9f, .spread = 5.0f});
    cases.push_back({.rows = 5, .columns = 32003, .top_k = 40, .spread = 3.0f});
    cases.push_back({.rows = 2, .columns = 32003, .top_k = 20000});
  }
  const std::vector<int64_t> columns = size == GridSize::kShort
                                           ? std::vector<int64_t>{17, 600}
                                           : std::vector<int64_t>{2, 16, 33, 300, 2000, 4000};
  Append(cases,
         Pairwise<SampleCase>()
             .Field(&SampleCase::rows, {1, 4})
             .Field(&SampleCase::columns, columns)
             .Field(&SampleCase::logits_dtype, FloatDTypes())
             .Field(&SampleCase::temperature, {1.0f, 0.0f, 0.3f, 5.0f, 1e-30f})
             .Field(&SampleCase::top_k, {0, 1, 5, 300, 100'000})
             .Field(&SampleCase::top_p, {1.0f, 0.9f, 0.5f, 1e-6f})
             .Field(&SampleCase::spread, {1.0f, 6.0f})
             .Field(&SampleCase::logits_layout, kInputs)
             .Field(&SampleCase::values, {Values::kNormal, Values::kIntegers, Values::kZeros,
                                          Values::kNonFinite, Values::kMasked, Values::kOnlyNan})
             .Select(8700));
  return cases;
}

SampleCase SampleCase::Random(Rng& rng) {
  SampleCase c;
  c.rows = rng.Integer(0, 8);
  c.columns = rng.Integer(1, 5000);
  c.logits_dtype = rng.Pick(FloatDTypes());
  c.temperature = rng.Chance(0.1) ? 0.0f : static_cast<float>(rng.Uniform() * 2.0);
  c.top_k = rng.Chance(0.5) ? 0 : rng.Integer(1, 2000);
  c.top_p = rng.Chance(0.5) ? 1.0f : static_cast<float>(rng.Uniform() * 0.999 + 1e-4);
  c.spread = static_cast<float>(rng.Uniform() * 8.0);
  c.logits_layout = RandomLayout(rng);
  c.values = rng.Pick<Values>({Values::kNormal, Values::kIntegers, Values::kMasked});
  c.seed = rng.Integer(1, 1'000'000);
  return c;
}

}  // namespace tandem::cases
