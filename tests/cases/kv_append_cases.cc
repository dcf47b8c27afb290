#include "tests/cases/kv_append_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/cases/pairwise.h"
#include "tests/cases/rope_cases.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using Case = KvAppendCase;
using reference::ReadAll;
using reference::RoundTo;

const std::vector<Layout> kInputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                     Layout::kBroadcast, Layout::kSpread};
const std::vector<Layout> kOutputs = {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                      Layout::kSpread};

int64_t MaxPages(const Case& c) { return (c.capacity + c.page_size - 1) / c.page_size; }

int64_t FirstRow(const Case& c, int64_t b) {
  return c.ragged ? std::max<int64_t>(c.position - b, 0) : c.position;
}

// Pages lie in the pool back to front; entries that no new row needs are not page numbers.
double PageEntry(const Case& c, int64_t i) {
  const int64_t b = i / MaxPages(c), page = i % MaxPages(c);
  const int64_t first = FirstRow(c, b);
  const bool needed = page >= first / c.page_size && page * c.page_size < first + c.tokens;
  return needed ? static_cast<double>(c.batch * MaxPages(c) - i) : i % 2 ? -1.0 : 1e9;
}

// What is stored: a tensor's values in f64 and the error they may have.
struct Stored {
  std::vector<double> values, allowed;
};

Stored Plain(const TensorView& x) {
  Stored stored{ReadAll(x), {}};
  stored.allowed.assign(stored.values.size(), 0.0);
  return stored;
}

// Rotated in the tensor's own type, as in place.
Stored Rotated(const TensorView& x, const RopeRotation& rope) {
  RotationOracle oracle = ExpectRotation(x, rope, x.dtype);
  return {std::move(oracle.expected), std::move(oracle.allowed)};
}

}  // namespace

Operands Case::MakeOperands() const {
  Operands operands;
  const auto fill = [&](Values kind, int operand) {
    return FillWith(kind, static_cast<uint64_t>(seed) * 16 + static_cast<uint64_t>(operand));
  };
  operands.Input("k", k_dtype, {batch, heads, tokens, head_dim}, x_layout, fill(values, 0));
  operands.Input("v", v_dtype, {batch, heads, tokens, v_head_dim}, x_layout, fill(values, 1));
  const int64_t planes = page_size ? batch * MaxPages(*this) + 1 : batch;
  const int64_t rows = page_size ? page_size : capacity;
  operands.InOut("k_cache", cache_dtype, {planes, heads, rows, head_dim}, cache_layout,
                 fill(Values::kIntegers, 2));
  operands.InOut("v_cache", cache_dtype, {planes, heads, rows, v_head_dim}, cache_layout,
                 fill(Values::kIntegers, 3));
  if (cache_dtype == DType::kI8) {
    operands.InOut("k_scale", DType::kF32, {planes, heads, rows}, cache_layout,
                   fill(Values::kNormal, 4));
    operands.InOut("v_scale", DType::kF32, {planes, heads, rows}, cache_layout,
                   fill(Values::kNormal, 5));
  }
  const Layout lists = x_layout == Layout::kSpread ? Layout::kSpread : Layout::kContiguous;
  if (ragged) {
    operands.Input("cache_lens", DType::kI32, {batch}, lists,
                   [this](int64_t b) { return static_cast<double>(FirstRow(*this, b)); });
  }
  if (page_size) {
    operands.Input("page_table", DType::kI32, {batch, MaxPages(*this)}, lists,
                   [this](int64_t i) { return PageEntry(*this, i); });
  }
  if (rope == KvRope::kNo) return operands;
  operands.Input("positions", DType::kI32,
                 rope == KvRope::kPerSequence ? Shape{batch, tokens} : Shape{tokens}, lists,
                 [this](int64_t i) { return static_cast<double>(position + i); });
  const int64_t rotated_pairs = pairs < 0 ? head_dim / 2 : pairs;
  operands.Input(
      "inv_freq", DType::kF32, {rotated_pairs}, Layout::kContiguous, [rotated_pairs](int64_t i) {
        return std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(rotated_pairs));
      });
  if (q_heads == 0) return operands;
  const Shape q_shape = {batch, q_heads, tokens - std::min(q_skipped, tokens), head_dim};
  if (q_in_place) {
    operands.InOut("q", q_dtype, q_shape, cache_layout, fill(values, 6));
  } else {
    operands.Input("q", q_dtype, q_shape, x_layout, fill(values, 6));
    operands.Output("q_out", q_out_dtype, q_shape, cache_layout);
  }
  return operands;
}

KvAppendArgs Case::Bind(const Views& views) const {
  KvAppendArgs args;
  args.k = views("k");
  args.v = views("v");
  args.k_cache = views("k_cache");
  args.v_cache = views("v_cache");
  args.position = ragged ? 0 : position;
  args.cache_lens = views("cache_lens");
  args.page_table = views("page_table");
  args.k_scale = views("k_scale");
  args.v_scale = views("v_scale");
  args.rope = {views("positions"), views("inv_freq"), pairing, magnitude};
  args.q = views("q");
  args.q_out = views(q_in_place ? "q" : "q_out");
  return args;
}

std::vector<Expectation> Case::Expect(const KvAppendArgs& args) const {
  std::vector<Expectation> expectations;
  const auto append = [&](const std::string& name, const Stored& added, int64_t width,
                          const TensorView& cache, const TensorView& scale) {
    Expectation out{.operand = name + "_cache", .expected = ReadAll(cache)};
    out.allowed.assign(out.expected.size(), 0.0);
    Expectation scales{.operand = name + "_scale", .expected = ReadAll(scale)};
    scales.allowed.assign(scales.expected.size(), 0.0);
    const int64_t rows = cache.dim(2);
    for (int64_t r = 0; r < batch * heads * tokens; ++r) {
      const int64_t b = r / (heads * tokens), h = r / tokens % heads;
      const int64_t p = FirstRow(*this, b) + r % tokens;
      int64_t plane = b;
      if (page_size) {
        plane = static_cast<int64_t>(PageEntry(*this, b * MaxPages(*this) + p / page_size));
      }
      const int64_t row = (plane * heads + h) * rows + (page_size ? p % page_size : p);
      const double* x = added.values.data() + r * width;
      const double* allowed = added.allowed.data() + r * width;
      double* to = out.expected.data() + row * width;
      double* to_allowed = out.allowed.data() + row * width;
      if (cache_dtype != DType::kI8) {
        for (int64_t d = 0; d < width; ++d) {
          const bool exact = allowed[d] == 0.0;
          to[d] = exact ? RoundTo(cache_dtype, x[d]) : x[d];
          if (std::isinf(RoundTo(cache_dtype, x[d]))) to[d] = RoundTo(cache_dtype, x[d]);
          to_allowed[d] = exact ? 0.0 : allowed[d] + reference::HalfUlp(cache_dtype, x[d]);
        }
        continue;
      }
      double largest = 0.0, error = 0.0;
      bool finite = true;
      for (int64_t d = 0; d < width; ++d) {
        finite = finite && std::isfinite(x[d]);
        largest = std::max(largest, std::fabs(x[d]));
        error = std::max(error, allowed[d]);
      }
      const float step = static_cast<float>(largest) / 127.0f;
      scales.expected[row] =
          finite ? static_cast<double>(step) : std::numeric_limits<double>::quiet_NaN();
      scales.allowed[row] = finite && error > 0.0 ? error / 127.0 + step * 0x1p-23 : 0.0;
      for (int64_t d = 0; d < width; ++d) {
        to[d] = 0.0;
        if (!finite || step == 0.0f) continue;
        if (error == 0.0) {
          to[d] = std::clamp(std::nearbyint(static_cast<float>(x[d]) / step), -127.0f, 127.0f);
        } else {  // half a step, and what the errors of element and scale make of it
          to[d] = x[d] / step;
          to_allowed[d] = 0.5 + (allowed[d] + error) / step + 127.0 * 0x1p-22;
        }
      }
    }
    expectations.push_back(std::move(out));
    if (scale.present()) expectations.push_back(std::move(scales));
  };
  append("k", rope == KvRope::kNo ? Plain(args.k) : Rotated(args.k, args.rope), head_dim,
         args.k_cache, args.k_scale);
  append("v", Plain(args.v), v_head_dim, args.v_cache, args.v_scale);
  if (args.q.present()) {
    RotationOracle oracle = ExpectRotation(args.q, args.rope, args.q_out.dtype);
    expectations.push_back({.operand = q_in_place ? "q" : "q_out",
                            .expected = std::move(oracle.expected),
                            .allowed = std::move(oracle.allowed)});
  }
  return expectations;
}

std::string Case::DTypeLabel() const { return ConversionLabel(k_dtype, cache_dtype); }

std::vector<Case> Case::Grid(GridSize size) {
  const std::vector<DType> caches = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};
  std::vector<Case> cases = {{.tokens = 0},
                             {.tokens = 16},
                             {.capacity = 1},
                             {.batch = 2, .heads = 3, .position = 15},
                             {.tokens = 0, .page_size = 4, .rope = KvRope::kShared, .q_heads = 2},
                             {.batch = 0, .page_size = 4},
                             {.head_dim = 0, .v_head_dim = 0, .cache_dtype = DType::kI8}};
  for (Values kind : {Values::kZeros, Values::kSmall, Values::kLarge, Values::kOnlyNan}) {
    cases.push_back({.tokens = 3, .cache_dtype = DType::kI8, .values = kind});
  }
  if (size == GridSize::kFull) {
    for (DType dtype : caches) {  // more than one task
      cases.push_back({.heads = 8,
                       .tokens = 70,
                       .capacity = 128,
                       .position = 50,
                       .head_dim = 128,
                       .cache_dtype = dtype,
                       .rope = KvRope::kShared,
                       .q_heads = 16,
                       .q_in_place = true});
    }
  }
  const std::vector<int64_t> dims =
      size == GridSize::kShort ? std::vector<int64_t>{64} : std::vector<int64_t>{1, 31, 64, 80};
  Pairwise<Case>::Settings places;
  for (int64_t page : {0, 1, 4, 64}) {
    for (bool lens : {false, true}) {
      places.push_back([=](Case& c) {
        c.page_size = page;
        c.ragged = lens;
      });
    }
  }
  const auto variants = [&](Case base) {
    return Pairwise<Case>(base)
        .Field(&Case::batch, {1, 2})
        .Field(&Case::heads, {1, 3})
        .Field(&Case::tokens, {1, 5})
        .Field(&Case::position, {0, 11})
        .Field(&Case::head_dim, dims)
        .Field(&Case::v_head_dim, {64, 40})
        .Field(&Case::k_dtype, FloatDTypes())
        .Field(&Case::v_dtype, FloatDTypes())
        .Field(&Case::cache_dtype, caches)
        .Field(&Case::x_layout, kInputs)
        .Field(&Case::cache_layout, kOutputs)
        .Field(&Case::values, {Values::kNormal, Values::kLarge, Values::kSmall, Values::kNonFinite})
        .Group(places);
  };
  Append(cases, variants({}).Select(8300));
  Append(cases, variants({})
                    .Field(&Case::rope, {KvRope::kShared, KvRope::kPerSequence})
                    .Field(&Case::pairs, {-1, 0})
                    .Field(&Case::pairing, {RopePairing::kInterleaved, RopePairing::kHalf})
                    .Field(&Case::magnitude, {1.0f, 1.2f})
                    .Field(&Case::q_heads, {0, 1, 6})
                    .Field(&Case::q_skipped, {0, 1, 4})
                    .Field(&Case::q_dtype, FloatDTypes())
                    .Field(&Case::q_out_dtype, FloatDTypes())
                    .Field(&Case::q_in_place, {false, true})
                    .Select(8400));
  // Rows that vectors fit, several warps of them.
  Append(
      cases,
      Pairwise<Case>()
          .Field(&Case::batch, {1, 2})
          .Field(&Case::heads, {1, 3, 8})
          .Field(&Case::tokens, {1, 5})
          .Field(&Case::position, {0, 11})
          .Field(&Case::head_dim, size == GridSize::kShort ? std::vector<int64_t>{128}
                                                           : std::vector<int64_t>{16, 80, 128, 256})
          .Field(&Case::v_head_dim, {64, 128})
          .Field(&Case::k_dtype, FloatDTypes())
          .Field(&Case::v_dtype, FloatDTypes())
          .Field(&Case::cache_dtype, caches)
          .Field(&Case::x_layout, {Layout::kContiguous, Layout::kAligned, Layout::kTransposed})
          .Field(&Case::cache_layout, {Layout::kContiguous, Layout::kAligned})
          .Field(&Case::values, {Values::kNormal, Values::kZeros, Values::kOnlyNan})
          .Field(&Case::rope, {KvRope::kNo, KvRope::kShared, KvRope::kPerSequence})
          .Field(&Case::pairing, {RopePairing::kInterleaved, RopePairing::kHalf})
          .Field(&Case::magnitude, {1.0f, 1.2f})
          .Field(&Case::q_heads, {0, 6, 24})
          .Field(&Case::q_skipped, {0, 4})
          .Field(&Case::q_dtype, FloatDTypes())
          .Field(&Case::q_out_dtype, FloatDTypes())
          .Field(&Case::q_in_place, {false, true})
          .Group(places)
          .Select(8450));
  return cases;
}

Case Case::Random(Rng& rng) {
  Case c;
  c.batch = rng.Integer(1, 3);
  c.heads = rng.Integer(1, 4);
  c.capacity = rng.Integer(1, 64);
  c.position = rng.Integer(0, c.capacity);
  c.tokens = rng.Integer(0, c.capacity - c.position);
  c.head_dim = rng.Integer(0, 130);
  c.v_head_dim = rng.Integer(0, 130);
  c.k_dtype = rng.Pick(FloatDTypes());
  c.v_dtype = rng.Pick(FloatDTypes());
  c.cache_dtype = rng.Pick<DType>({DType::kF32, DType::kF16, DType::kBF16, DType::kI8});
  c.ragged = rng.Chance(0.3);
  if (rng.Chance(0.4)) c.page_size = rng.Integer(1, 20);
  if (rng.Chance(0.5)) {
    c.rope = rng.Chance(0.5) ? KvRope::kShared : KvRope::kPerSequence;
    c.pairing = static_cast<RopePairing>(rng.Integer(0, 1));
    c.pairs = rng.Chance(0.5) ? -1 : rng.Integer(0, c.head_dim / 2);
    c.q_heads = rng.Integer(0, 4);
    c.q_skipped = rng.Integer(0, 3);
    c.q_in_place = rng.Chance(0.5);
  }
  c.x_layout = rng.Chance(0.6) ? Layout::kContiguous : rng.Pick(kInputs);
  c.values = rng.Chance(0.8) ? Values::kNormal : Values::kNonFinite;
  c.seed = rng.Integer(1, 1'000'000);
  return c;
}

}  // namespace tandem::cases
