#include "tests/cases/attention_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "tests/reference/attention.h"
#include "tests/reference/elements.h"
#include "tests/reference/visible.h"

namespace tandem::cases {
namespace {

using Case = AttentionCase;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
// FlashAttention's tests allow this much beyond twice the naive error.
constexpr double kOutFloor = 1e-5;
// Relative to the magnitude of the log-sum-exp, or to 1.
constexpr double kLseTolerance = 1e-5;
// An i8 cache holds normals in steps of about 1/40: 127 is beyond three deviations.
constexpr double kStepsPerDeviation = 40.0;

// The random streams of one case.
enum Stream : uint64_t {
  kQ,
  kK,
  kV,
  kKNew,
  kVNew,
  kLengths,
  kPages,
  kBias,
  kBiasHidden,
  kMaskHidden,
  kSinks,
  kScales,
};

uint64_t SeedOf(const Case& c, Stream stream) {
  return static_cast<uint64_t>(c.seed) * 16 + stream;
}

Fill Normals(const Case& c, Stream stream, DType dtype, double deviation) {
  return
      [rng = Rng(SeedOf(c, stream)), quantized = dtype == DType::kI8, deviation](int64_t) mutable {
        const double x = rng.Normal() * deviation;
        return quantized ? std::clamp(std::round(x * kStepsPerDeviation), -127.0, 127.0) : x;
      };
}

Fill Listed(const std::vector<int64_t>& values) {
  return [values](int64_t i) { return static_cast<double>(values[static_cast<size_t>(i)]); };
}

// --- lengths and pages

struct Lengths {
  std::vector<int64_t> queries, keys, starts;  // of each sequence; keys: in its whole cache

  int64_t total_queries() const {
    return std::accumulate(queries.begin(), queries.end(), int64_t{0});
  }
};

int64_t PagesFor(int64_t keys, int64_t page_size) { return (keys + page_size - 1) / page_size; }

// Of a cache of which the call has a part.
int64_t WholeCache(const Case& c) {
  const bool full = c.keys_after > 0 && c.page_size > 0;  // what follows follows the last page
  const int64_t rows = full ? PagesFor(c.kv_len, c.page_size) * c.page_size : c.kv_len;
  return c.keys_before + rows + c.keys_after;
}

Lengths LengthsOf(const Case& c) {
  Rng rng(SeedOf(c, kLengths));
  const auto length = [&](int64_t most) {
    if (rng.Chance(0.2)) return int64_t{0};
    return rng.Chance(0.3) ? most : rng.Integer(0, most);
  };
  Lengths lengths;
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t queries = length(c.q_len), keys = length(WholeCache(c));
    lengths.queries.push_back(c.queries == AttentionQueries::kWhole ? c.q_len : queries);
    lengths.keys.push_back(c.ragged_kv ? keys : WholeCache(c));
    // One sequence in eight is all padding.
    lengths.starts.push_back(rng.Chance(0.125) ? lengths.keys.back() + 3
                                               : rng.Integer(0, lengths.keys.back() / 2));
  }
  return lengths;
}

struct Pages {
  std::vector<int64_t> table;  // [B, columns]
  int64_t columns = 0;
  int64_t pool = 0;
};

// Shuffled, with a few pages that nobody uses.
Pages PagesOf(const Case& c, const Lengths& lengths) {
  Pages pages;
  pages.columns = PagesFor(c.kv_len, c.page_size);
  std::vector<int64_t> keys_here = lengths.keys;
  for (int64_t& keys : keys_here) {
    keys = std::clamp<int64_t>(keys - c.keys_before, 0, pages.columns * c.page_size);
    pages.pool += PagesFor(keys, c.page_size);
  }
  pages.pool += 3;
  std::vector<int64_t> order(static_cast<size_t>(pages.pool));
  std::iota(order.begin(), order.end(), int64_t{0});
  Rng rng(SeedOf(c, kPages));
  for (int64_t i = pages.pool - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng.Integer(0, i))]);
  }
  auto next = order.begin();
  for (int64_t keys : keys_here) {
    for (int64_t column = 0; column < pages.columns; ++column) {
      pages.table.push_back(column * c.page_size < keys ? *next++ : INT32_MAX);
    }
  }
  return pages;
}

// --- bias and mask

Shape BroadcastShape(AttentionExtents extents, const Shape& whole) {
  Shape shape = whole;
  switch (extents) {
    case AttentionExtents::kAbsent:
    case AttentionExtents::kFull:
      break;
    case AttentionExtents::kOneHead:
      shape[1] = 1;
      break;
    case AttentionExtents::kOneBatch:
      shape[0] = 1;
      break;
    case AttentionExtents::kOneHeadAndQuery:
      shape[1] = shape[2] = 1;
      break;
    case AttentionExtents::kOneBatchAndHead:
      shape[0] = shape[1] = 1;
      break;
    case AttentionExtents::kOneKey:
      shape[3] = 1;
      break;
  }
  return shape;
}

// A number in [0, 1) for each tuple of numbers (splitmix64).
double Hash(uint64_t seed, std::initializer_list<int64_t> numbers) {
  uint64_t x = seed;
  for (int64_t number : numbers) {
    x += 0x9E3779B97F4A7C15u + static_cast<uint64_t>(number);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1p-53;
}

bool Hides(AttentionHidden pattern, uint64_t seed, int64_t b, int64_t h, int64_t i, int64_t j) {
  switch (pattern) {
    case AttentionHidden::kNothing:
      return false;
    case AttentionHidden::kEntries:
      return Hash(seed, {b, h, i, j}) < 0.2;
    case AttentionHidden::kBlocks:
      return Hash(seed, {b, h, i / 16, j / 32}) < 0.2;
    case AttentionHidden::kRows:
      return Hash(seed, {b, h, i}) < 0.25;
  }
  return false;
}

// Hides() of row-major index `n` of a bias or mask of this shape.
bool HidesElement(AttentionHidden pattern, uint64_t seed, const Shape& shape, int64_t n) {
  const int64_t j = n % shape[3], i = n / shape[3] % shape[2];
  const int64_t h = n / shape[3] / shape[2] % shape[1], b = n / shape[3] / shape[2] / shape[1];
  return Hides(pattern, seed, b, h, i, j);
}

void AddBias(const Case& c, const Shape& whole, Operands& operands) {
  const Shape shape = BroadcastShape(c.bias, whole);
  operands.Input(
      "bias", c.bias_dtype, shape, c.bias_layout,
      [=, rng = Rng(SeedOf(c, kBias)), seed = SeedOf(c, kBiasHidden)](int64_t n) mutable {
        const double x = rng.Normal();
        return HidesElement(c.bias_hides, seed, shape, n) ? -kInfinity : x;
      });
}

// Columns beyond the keys, which no kernel may heed, are visible.
void AddMask(const Case& c, const Shape& whole, Operands& operands) {
  const uint64_t seed = SeedOf(c, kMaskHidden);
  if (!c.mask_packed) {
    const Shape shape = BroadcastShape(c.mask, whole);
    operands.Input("mask", DType::kBool, shape, c.bias_layout, [=](int64_t n) {
      return HidesElement(c.mask_hides, seed, shape, n) ? 0.0 : 1.0;
    });
    return;
  }
  Shape shape = whole;
  if (c.mask != AttentionExtents::kOneKey) shape = BroadcastShape(c.mask, whole);
  const int64_t keys = shape[3];
  shape[3] = (keys + 31) / 32;
  operands.Input("mask", DType::kU32, shape, c.bias_layout, [=](int64_t n) {
    const int64_t first = n % shape[3] * 32, row = n / shape[3];
    uint32_t word = 0;
    for (int64_t j = first; j < first + 32; ++j) {
      const Shape bits = {shape[0], shape[1], shape[2], keys};
      const bool hidden = j < keys && HidesElement(c.mask_hides, seed, bits, row * keys + j);
      word |= uint32_t{!hidden} << (j - first);
    }
    return static_cast<double>(word);
  });
}

// --- what nobody sees

// Which elements of a view (by address, so that broadcast ones are one) are in use.
class Marks {
 public:
  explicit Marks(const TensorView& view)
      : view_(view),
        marked_(view.present() ? static_cast<size_t>(ByteExtent(view) / BlockBytes(view.dtype))
                               : 0) {}
  void Mark(int64_t offset) { marked_[static_cast<size_t>(offset)] = true; }
  // The elements of the last dimension at `offset` are one unit, marked by the first.
  template <typename Fn>
  void ForEachUnmarkedRow(Fn&& fn) const {
    if (!view_.present() || view_.empty()) return;
    reference::ForEachOffset(Slice(view_, 3, 0, 1), [&](int64_t offset) {
      if (!marked_[static_cast<size_t>(offset)]) fn(RowAt(offset));
    });
  }
  template <typename Fn>
  void ForEachUnmarked(Fn&& fn) const {
    if (!view_.present() || view_.empty()) return;
    reference::ForEachOffset(view_, [&](int64_t offset) {
      if (!marked_[static_cast<size_t>(offset)]) fn(ElementAt(offset));
    });
  }

 private:
  TensorView ElementAt(int64_t offset) const {
    TensorView element = view_;
    element.data = static_cast<char*>(view_.data) + ByteOffset(view_.dtype, offset);
    element.shape = {1};
    element.strides = {1};
    return element;
  }
  TensorView RowAt(int64_t offset) const {
    TensorView row = ElementAt(offset);
    row.shape = {view_.dim(3)};
    row.strides = {view_.stride(3)};
    return row;
  }

  TensorView view_;
  std::vector<bool> marked_;
};

// i8 has no NaN; its scale has.
void Spoil(const TensorView& elements) {
  const double poison = elements.dtype == DType::kI8 ? 127.0 : kNan;
  reference::WriteAll(elements, [=](int64_t) { return poison; });
}

TensorView RowView(const TensorView& view, int64_t offset) {
  TensorView row = view;
  row.data = static_cast<char*>(view.data) + ByteOffset(view.dtype, offset);
  row.shape = {view.dim(3)};
  row.strides = {view.stride(3)};
  return row;
}

// Turns into NaN what no query sees, and what `values` says.
void PlaceNan(const Case& c, const AttentionArgs& args) {
  Marks q(args.q), k(args.k), v(args.v), k_new(args.k_new), v_new(args.v_new), bias(args.bias);
  Marks k_scale(args.k_scale), v_scale(args.v_scale);
  for (int64_t b = 0; b < args.batch(); ++b) {
    const reference::AttentionExtent extent = reference::ExtentOf(args, b);
    for (int64_t h = 0; h < args.q_heads(); ++h) {
      const int64_t g = h / (args.q_heads() / args.kv_heads());
      for (int64_t i = 0; i < extent.rule.q_len; ++i) {
        const int64_t row = extent.first_row + i;
        q.Mark(extent.plane * args.q.stride(0) + h * args.q.stride(1) + row * args.q.stride(2));
        const auto place = [&](const TensorView& cache, const TensorView& fresh, int64_t j) {
          return reference::PlaceOf(args, extent, cache, fresh, b, g, j).offset;
        };
        AttentionArgs without_bias = args;
        without_bias.bias = {};
        for (int64_t j : reference::VisibleKeys(without_bias, extent, b, h, i)) {
          if (args.bias.present()) {
            const int64_t at = reference::BroadcastOffset(args.bias, b, h, row, j);
            bias.Mark(at);
            if (reference::ReadAt(args.bias, at) == -kInfinity) continue;
          }
          (j < extent.cache_len ? k : k_new).Mark(place(args.k, args.k_new, j));
          (j < extent.cache_len ? v : v_new).Mark(place(args.v, args.v_new, j));
          if (args.k_scale.present() && j < extent.cache_len) {
            k_scale.Mark(place(args.k_scale, {}, j));
            v_scale.Mark(place(args.v_scale, {}, j));
          }
        }
      }
      // The chosen NaN: one key, or one query.
      const int64_t last = extent.rule.kv_len - 1;
      const int64_t first = std::max<int64_t>(extent.rule.kv_begin - extent.rule.keys_before, 0);
      const int64_t key = c.values == AttentionValues::kNanFirst  ? first
                          : c.values == AttentionValues::kNanLast ? last
                                                                  : -1;
      if (key >= 0 && key <= last) {
        const bool in_scale = key < extent.cache_len && args.k_scale.present();
        for (const auto& [cache, fresh, scale] :
             {std::tuple(&args.k, &args.k_new, &args.k_scale),
              std::tuple(&args.v, &args.v_new, &args.v_scale)}) {
          const auto at =
              reference::PlaceOf(args, extent, in_scale ? *scale : *cache, *fresh, b, g, key);
          if (in_scale) {
            *scale->At<float>(at.offset) = static_cast<float>(kNan);
          } else {
            Spoil(RowView(*at.view, at.offset));
          }
        }
      }
      if (c.values == AttentionValues::kNanQuery && extent.rule.q_len > 0) {
        Spoil(RowView(args.q, extent.plane * args.q.stride(0) + h * args.q.stride(1) +
                                  extent.first_row * args.q.stride(2)));
      }
    }
  }
  for (const Marks* marks : {&q, &k, &v, &k_new, &v_new}) marks->ForEachUnmarkedRow(Spoil);
  for (const Marks* marks : {&bias, &k_scale, &v_scale}) marks->ForEachUnmarked(Spoil);
}

}  // namespace

Operands Case::MakeOperands() const {
  const int64_t dv = v_head_dim ? v_head_dim : head_dim;
  const double spread = values == AttentionValues::kLarge ? 100.0 : 1.0;
  Operands operands;
  // Sizes that would not fit in memory: the errors of Operands, before anything is computed.
  if (batch < 0 || q_len < 0 || kv_len < 0 || batch > (1 << 20) || page_size < 0 ||
      std::max({std::abs(keys_before), std::abs(keys_after), std::abs(new_after)}) > (1 << 30)) {
    operands.Output("out", out_dtype, {batch, q_heads, q_len, kv_len}, out_layout);
    return operands;
  }
  const Lengths lengths = LengthsOf(*this);
  const bool packed = queries == AttentionQueries::kPacked;
  const int64_t q_batch = packed ? 1 : batch;
  const int64_t rows = packed ? lengths.total_queries() : q_len;
  const Pages pages = page_size > 0 ? PagesOf(*this, lengths) : Pages{};
  const int64_t planes = page_size > 0 ? pages.pool : batch;
  const int64_t plane_keys = page_size > 0 ? page_size : kv_len;
  const int64_t all_keys =
      (page_size > 0 ? pages.columns * page_size : kv_len) + std::max<int64_t>(new_len, 0);

  operands.Input("q", q_dtype, {q_batch, q_heads, rows, head_dim}, q_layout,
                 Normals(*this, kQ, q_dtype, spread));
  operands.Input("k", kv_dtype, {planes, kv_heads, plane_keys, head_dim}, kv_layout,
                 Normals(*this, kK, kv_dtype, spread));
  operands.Input("v", kv_dtype, {planes, kv_heads, plane_keys, dv}, kv_layout,
                 Normals(*this, kV, kv_dtype, 1.0));
  if (kv_dtype == DType::kI8) {
    Rng rng(SeedOf(*this, kScales));
    for (const char* name : {"k_scale", "v_scale"}) {
      operands.Input(name, DType::kF32, {planes, kv_heads, plane_keys}, kv_layout,
                     [&](int64_t) { return (0.5 + rng.Uniform()) / kStepsPerDeviation; });
    }
  }
  if (new_len >= 0) {
    operands.Input("k_new", new_dtype, {batch, kv_heads, new_len, head_dim}, q_layout,
                   Normals(*this, kKNew, new_dtype, spread));
    operands.Input("v_new", new_dtype, {batch, kv_heads, new_len, dv}, q_layout,
                   Normals(*this, kVNew, new_dtype, 1.0));
  }
  if (alibi) {
    operands.Input("alibi_slopes", DType::kF32, {q_heads}, bias_layout, [this](int64_t h) {
      return std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(q_heads));
    });
  }
  if (sinks) {
    operands.Input("sinks", DType::kF32, {q_heads}, bias_layout,
                   [rng = Rng(SeedOf(*this, kSinks))](int64_t) mutable {
                     const double x = 3.0 * rng.Normal();
                     if (rng.Chance(0.1)) return -kInfinity;  // as if there were none
                     return rng.Chance(0.1) ? 150.0 : x;      // its exponential overflows
                   });
  }
  const Shape whole = {batch, q_heads, rows, all_keys};
  if (bias != AttentionExtents::kAbsent) AddBias(*this, whole, operands);
  if (mask != AttentionExtents::kAbsent) AddMask(*this, whole, operands);

  const auto list = [&](const char* name, const std::vector<int64_t>& numbers) {
    operands.Input(name, DType::kI32, {static_cast<int64_t>(numbers.size())}, Layout::kContiguous,
                   Listed(numbers));
  };
  if (queries == AttentionQueries::kRagged) list("q_lens", lengths.queries);
  if (packed) {
    std::vector<int64_t> offsets = {0};
    for (int64_t length : lengths.queries) offsets.push_back(offsets.back() + length);
    list("q_offsets", offsets);
  }
  if (ragged_kv || page_size > 0) list("kv_lens", lengths.keys);
  if (left_padding) list("kv_starts", lengths.starts);
  if (page_size > 0) {
    operands.Input("page_table", DType::kI32, {batch, pages.columns}, Layout::kPadded,
                   Listed(pages.table));
  }
  operands.Output("out", out_dtype, {q_batch, q_heads, rows, dv}, out_layout);
  if (lse) operands.Output("lse", DType::kF32, {q_batch, q_heads, rows}, out_layout);
  if (!operands.status().ok() || Operands::WithoutValues::any()) return operands;
  const AttentionArgs args = Bind(Views(operands));
  if (Validate(args).ok()) PlaceNan(*this, args);
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
  args.softcap = softcap;
  args.alibi_slopes = views("alibi_slopes");
  args.bias = views("bias");
  args.mask = views("mask");
  args.sinks = views("sinks");
  args.causal = causal;
  args.window_left = window_left;
  args.window_right = window_right;
  args.chunk = chunk;
  args.prefix_len = prefix_len;
  args.keys_before = keys_before;
  args.keys_after = keys_after;
  args.new_after = new_after;
  args.batch_invariant = batch_invariant;
  args.q_lens = views("q_lens");
  args.q_offsets = views("q_offsets");
  args.kv_lens = views("kv_lens");
  args.kv_starts = views("kv_starts");
  args.page_table = views("page_table");
  args.k_scale = views("k_scale");
  args.v_scale = views("v_scale");
  return args;
}

std::vector<Expectation> Case::Expect(const AttentionArgs& args) const {
  const reference::AttentionResult oracle = reference::Attention(args);
  // The values of an i8 cache are what they are, but what is multiplied with 8 bits may be rounded
  // to no less than f16: queries and probabilities.
  DType storage = reference::Coarser(q_dtype, kv_dtype == DType::kI8 ? DType::kF16 : kv_dtype);
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
  // A sink can leave nothing of the values but what f32 rounds to 0.
  if (storage == DType::kF16 && out_dtype != DType::kBF16 && !sinks) out.max_relative_l2 = 1e-3;
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

}  // namespace tandem::cases
