#include "tests/cases/mask_cases.h"

#include <cstring>
#include <limits>
#include <utility>

#include "tests/cases/pairwise.h"
#include "tests/reference/visible.h"

namespace tandem::cases {
namespace {

using Case = MaskCase;

const std::vector<DType> kDTypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kBool,
                                    DType::kU32};

template <typename T>
void AppendBytes(std::vector<std::byte>& bytes, T value) {
  const size_t at = bytes.size();
  bytes.resize(at + sizeof(T));
  std::memcpy(&bytes[at], &value, sizeof(T));
}

// As stored in an element of that type.
void AppendElement(std::vector<std::byte>& bytes, DType dtype, double value) {
  if (dtype == DType::kU32) return AppendBytes(bytes, static_cast<uint32_t>(value));
  if (dtype == DType::kBool) return AppendBytes(bytes, static_cast<uint8_t>(value));
  DispatchFloat(dtype,
                [&]<typename T>() { AppendBytes(bytes, FromFloat<T>(static_cast<float>(value))); });
}

MaskRule RuleOf(const Case& c) {
  return {.q_len = c.q_len,
          .kv_len = c.kv_len,
          .causal = c.causal,
          .window_left = c.window_left,
          .window_right = c.window_right,
          .chunk = c.chunk,
          .prefix_len = c.prefix_len,
          .kv_begin = c.kv_begin,
          .keys_before = c.keys_before,
          .keys_after = c.keys_after};
}

MaskRule OldRuleOf(const Case& c) {
  MaskRule rule = RuleOf(c);
  rule.q_len = c.old_q_len;
  rule.kv_len = c.old_kv_len;
  rule.window_left = c.old_window_left;
  rule.kv_begin = c.old_kv_begin;
  return rule;
}

int64_t RowsOf(const Case& c) { return c.rows >= 0 ? c.rows : c.q_len - c.first_row; }

enum List : int64_t { kQLens = 1, kKvLens = 2, kKvStarts = 4 };

// Entry b of a list. The first sequences are the extremes.
int64_t Entry(const Case& c, List list, int64_t b) {
  const int64_t largest = list == kQLens ? c.q_len : list == kKvLens ? c.kv_len : c.kv_len / 2;
  if (b == 0) return largest;
  if (b == 1) return 0;
  Rng rng(static_cast<uint64_t>(c.seed * 100 + b * 8 + list));
  return rng.Integer(0, largest);
}

MaskRule SequenceOf(const Case& c, int64_t b) {
  MaskRule rule = RuleOf(c);
  if (c.lists & kQLens) rule.q_len = Entry(c, kQLens, b);
  if (c.lists & kKvLens) rule.kv_len = Entry(c, kKvLens, b);
  if (c.lists & kKvStarts) rule.kv_begin = Entry(c, kKvStarts, b);
  return rule;
}

// What a cell holds by a rule: one key, or 32.
double Value(DType dtype, const MaskRule& rule, int64_t q, int64_t column) {
  const auto visible = [&](int64_t k) { return q < rule.q_len && reference::Visible(rule, q, k); };
  if (dtype == DType::kU32) {
    uint32_t word = 0;
    for (int bit = 0; bit < 32; ++bit) word |= uint32_t{visible(column * 32 + bit)} << bit;
    return word;
  }
  if (dtype == DType::kBool) return visible(column) ? 1.0 : 0.0;
  return visible(column) ? 0.0 : -std::numeric_limits<double>::infinity();
}

// Extension must leave alone what does not differ. Those cells begin with (and keep) a value that
// no mask has.
double KeptValue(int64_t i) { return static_cast<double>(3 + i % 5); }

bool IsKept(const Case& c, int64_t q, int64_t column) {
  const MaskRule old = OldRuleOf(c);
  return c.old_q_len >= 0 && q < old.q_len && column < MaskColumns(c.out_dtype, old.kv_len) &&
         Value(c.out_dtype, RuleOf(c), q, column) == Value(c.out_dtype, old, q, column);
}

// q_len, kv_len
Pairwise<Case>::Settings Sizes(const std::vector<std::pair<int64_t, int64_t>>& sizes) {
  Pairwise<Case>::Settings settings;
  for (const auto& [q, kv] : sizes) {
    settings.push_back([q = q, kv = kv](Case& c) {
      c.q_len = q;
      c.kv_len = kv;
    });
  }
  return settings;
}

std::vector<Case> Patterns(const std::vector<std::pair<int64_t, int64_t>>& sizes, uint64_t seed) {
  return Pairwise<Case>()
      .Group(Sizes(sizes))
      .Field(&Case::causal, {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft})
      .Field(&Case::window_left, {-1, 0, 1, 31, 70, 1'000'000})
      .Field(&Case::window_right, {-1, 0, 5, 64, 1'000'000})
      .Field(&Case::chunk, {0, 1, 16, 77})
      .Field(&Case::prefix_len, {0, 3, 40})
      .Field(&Case::kv_begin, {0, 2, 33, 5000})
      .Field(&Case::keys_before, {0, 1, 50, 1'000'000})
      .Field(&Case::keys_after, {0, 1, 90})
      .Field(&Case::out_dtype, kDTypes)
      .Field(&Case::out_layout, {Layout::kContiguous, Layout::kPadded})
      .Select(seed);
}

// Rows on 16 bytes, of several pieces of a warp's and not.
std::vector<Case> VectorRows(const std::vector<std::pair<int64_t, int64_t>>& sizes, uint64_t seed) {
  return Pairwise<Case>()
      .Group(Sizes(sizes))
      .Field(&Case::causal, {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft})
      .Field(&Case::window_left, {-1, 0, 70})
      .Field(&Case::window_right, {-1, 5})
      .Field(&Case::chunk, {0, 77})
      .Field(&Case::kv_begin, {0, 33})
      .Field(&Case::batch, {0, 2})
      .Field(&Case::out_dtype, kDTypes)
      .Field(&Case::out_layout, {Layout::kContiguous, Layout::kAligned})
      .Select(seed);
}

// Bands of rows, and batches of sequences of different lengths.
std::vector<Case> Parts(const std::vector<std::pair<int64_t, int64_t>>& sizes, uint64_t seed) {
  return Pairwise<Case>()
      .Group(Sizes(sizes))
      .Group({[](Case&) {},
              [](Case& c) {
                c.first_row = 1;
                c.rows = 1;
              },
              [](Case& c) { c.first_row = c.q_len / 2; }, [](Case& c) { c.rows = 0; },
              [](Case& c) { c.first_row = c.q_len; }})
      .Field(&Case::batch, {0, 1, 2, 5})
      .Field(&Case::lists, {0, 1, 2, 3, 4, 6, 7})
      .Field(&Case::window_left, {-1, 20})
      .Field(&Case::chunk, {0, 24})
      .Field(&Case::keys_before, {0, 10})
      .Field(&Case::keys_after, {0, 30})
      .Field(&Case::causal, {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft})
      .Field(&Case::out_dtype, kDTypes)
      .Field(&Case::out_layout, {Layout::kContiguous, Layout::kPadded})
      .Select(seed);
}

// Lists need rank 4; the mask of a part of the keys takes no kv_lens.
std::vector<Case> Valid(std::vector<Case> cases) {
  for (Case& c : cases) {
    if (c.lists != 0) c.batch = std::max<int64_t>(1, c.batch);
    if (c.lists & kKvLens) c.keys_before = c.keys_after = 0;
  }
  return cases;
}

// One row, column or both more (or fewer), and long steps.
std::vector<Case> Extensions(const std::vector<std::pair<int64_t, int64_t>>& sizes, uint64_t seed) {
  Pairwise<Case>::Settings steps;
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 0}, {1, 1}, {0, 1}, {1, 0}, {5, 40}, {40, 5}, {-3, -3}, {0, -40}, {70, 130}}) {
    steps.push_back([rows = rows, columns = columns](Case& c) {
      c.old_q_len = std::max<int64_t>(0, c.q_len - rows);
      c.old_kv_len = std::max<int64_t>(0, c.kv_len - columns);
      c.old_window_left = c.window_left;
    });
  }
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Sizes(sizes))
          .Field(&Case::window_left, {-1, 0, 20, 64})
          .Group(steps)
          .Field(&Case::window_right, {-1, 9})
          .Field(&Case::chunk, {0, 16})
          .Field(&Case::prefix_len, {0, 50})
          .Field(&Case::kv_begin, {0, 7})
          .Field(&Case::keys_before, {0, 20})
          .Field(&Case::keys_after, {0, 6})
          .Field(&Case::causal, {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft})
          .Field(&Case::batch, {0, 2})
          .Field(&Case::out_dtype, kDTypes)
          .Field(&Case::out_layout, {Layout::kContiguous, Layout::kPadded})
          .Select(seed);
  // Pairwise fills fields in any order of groups: what the old rule shares follows.
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].old_window_left = i % 5 == 0 ? 12 : cases[i].window_left;
    cases[i].old_kv_begin = i % 6 == 1 ? 4 : cases[i].kv_begin;
  }
  return cases;
}

}  // namespace

Operands Case::MakeOperands() const {
  Operands operands;
  const int64_t columns = MaskColumns(out_dtype, kv_len), rows_out = RowsOf(*this);
  const Shape shape = batch == 0 ? Shape{rows_out, columns} : Shape{batch, 1, rows_out, columns};
  if (old_q_len < 0) {
    operands.Output("out", out_dtype, shape, out_layout);
  } else {
    operands.InOut("out", out_dtype, shape, out_layout, [&](int64_t i) {
      const int64_t q = first_row + i / columns % rows_out, column = i % columns;
      const bool is_new = q >= old_q_len || column >= MaskColumns(out_dtype, old_kv_len);
      if (is_new || IsKept(*this, q, column)) return KeptValue(i);
      return Value(out_dtype, OldRuleOf(*this), q, column);
    });
  }
  for (const auto& [name, list] : {std::pair("q_lens", kQLens), std::pair("kv_lens", kKvLens),
                                   std::pair("kv_starts", kKvStarts)}) {
    if ((lists & list) == 0) continue;
    operands.Input(name, DType::kI32, {batch}, out_layout, [&, which = list](int64_t b) {
      return static_cast<double>(Entry(*this, which, b));
    });
  }
  return operands;
}

MaskArgs Case::Bind(const Views& views) const {
  MaskArgs args;
  args.rule = RuleOf(*this);
  args.out = views("out");
  args.first_row = first_row;
  args.rows = rows;
  args.q_lens = views("q_lens");
  args.kv_lens = views("kv_lens");
  args.kv_starts = views("kv_starts");
  if (old_q_len >= 0) args.previous = OldRuleOf(*this);
  return args;
}

// The naive loop, compared bit for bit.
std::vector<Expectation> Case::Expect(const MaskArgs&) const {
  Expectation out{.operand = "out"};
  int64_t i = 0;
  for (int64_t b = 0; b < std::max<int64_t>(1, batch); ++b) {
    const MaskRule rule = SequenceOf(*this, b);
    for (int64_t q = first_row; q < first_row + RowsOf(*this); ++q) {
      for (int64_t column = 0; column < MaskColumns(out_dtype, kv_len); ++column, ++i) {
        AppendElement(out.bytes, out_dtype,
                      IsKept(*this, q, column) ? KeptValue(i) : Value(out_dtype, rule, q, column));
      }
    }
  }
  return {std::move(out)};
}

std::string Case::DTypeLabel() const { return std::string(Name(out_dtype)); }

std::vector<Case> Case::Grid(GridSize size) {
  std::vector<Case> cases = {
      {.q_len = 0, .kv_len = 5},
      {.q_len = 5, .kv_len = 0},
      {.q_len = 1, .kv_len = 1},
      {.q_len = 1, .kv_len = 100},
      // more queries than keys: the first rows see nothing
      {.q_len = 9, .kv_len = 4},
      {.q_len = 40, .kv_len = 7, .causal = Causal::kNone, .window_right = 9},
  };
  if (size == GridSize::kShort) {
    Append(cases, Patterns({{3, 17}, {64, 64}, {33, 130}}, 5500));
    Append(cases, VectorRows({{9, 300}, {2, 512}}, 5550));
    Append(cases, Valid(Parts({{9, 17}, {40, 130}}, 5600)));
    Append(cases, Extensions({{9, 17}, {80, 300}}, 5700));
    return cases;
  }
  Append(cases, Patterns({{1, 33},
                          {17, 17},
                          {64, 64},
                          {100, 31},
                          {65, 127},
                          {7, 300},
                          {130, 260},
                          {20, 1030},
                          {5, 2100}},
                         5000));
  Append(cases, VectorRows({{9, 300}, {130, 512}, {2, 8192}, {3, 20008}, {2, 133000}}, 5050));
  Append(cases, Valid(Parts({{2, 33}, {9, 17}, {40, 130}, {64, 64}, {70, 520}}, 5100)));
  Append(cases, Extensions({{1, 70}, {9, 17}, {64, 64}, {80, 300}, {100, 31}, {40, 700}}, 5200));
  return cases;
}

Case Case::Random(Rng& rng) {
  Case c;
  c.q_len = rng.Integer(0, 80);
  c.kv_len = rng.Chance(0.3) ? c.q_len : rng.Integer(0, 400);
  c.causal = static_cast<Causal>(rng.Integer(0, 2));
  c.window_left = rng.Chance(0.5) ? -1 : rng.Integer(0, 200);
  c.window_right = rng.Chance(0.5) ? -1 : rng.Integer(0, 200);
  if (rng.Chance(0.25)) c.chunk = rng.Integer(1, 100);
  if (rng.Chance(0.25)) c.prefix_len = rng.Integer(0, 100);
  if (rng.Chance(0.25)) c.kv_begin = rng.Integer(0, 100);
  if (rng.Chance(0.3)) {
    c.first_row = rng.Integer(0, c.q_len);
    c.rows = rng.Integer(-1, c.q_len - c.first_row);
  }
  if (rng.Chance(0.4)) c.batch = rng.Integer(1, 4);
  if (rng.Chance(0.3)) {
    c.old_q_len = rng.Integer(0, c.q_len + 10);
    c.old_kv_len = rng.Integer(0, c.kv_len + 10);
    c.old_window_left = rng.Chance(0.7) ? c.window_left : rng.Integer(-1, 200);
    c.old_kv_begin = rng.Chance(0.7) ? c.kv_begin : rng.Integer(0, 100);
  } else if (c.batch > 0) {
    c.lists = rng.Integer(0, 7);
  }
  if (rng.Chance(0.25) && (c.lists & kKvLens) == 0) {
    c.keys_before = rng.Integer(0, 300);
    c.keys_after = rng.Integer(0, 300);
  }
  c.seed = rng.Integer(1, 1'000'000);
  c.out_dtype = rng.Pick(kDTypes);
  c.out_layout = rng.Chance(0.5) ? Layout::kContiguous : Layout::kPadded;
  return c;
}

}  // namespace tandem::cases
