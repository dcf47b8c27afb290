#include "tests/cases/mask_cases.h"

#include <cstring>

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
      .Field(&Case::out_dtype, kDTypes)
      .Field(&Case::out_layout, {Layout::kContiguous, Layout::kPadded})
      .Select(seed);
}

}  // namespace

Operands Case::MakeOperands() const {
  Operands operands;
  operands.Output("out", out_dtype, {q_len, MaskColumns(out_dtype, kv_len)}, out_layout);
  return operands;
}

MaskArgs Case::Bind(const Views& views) const {
  MaskArgs args;
  args.rule = {.q_len = q_len,
               .kv_len = kv_len,
               .causal = causal,
               .window_left = window_left,
               .window_right = window_right};
  args.out = views("out");
  return args;
}

// The naive loop, compared bit for bit.
std::vector<Expectation> Case::Expect(const MaskArgs& args) const {
  Expectation out{.operand = "out"};
  const float hidden = -std::numeric_limits<float>::infinity();
  for (int64_t q = 0; q < q_len; ++q) {
    for (int64_t column = 0; column < MaskColumns(out_dtype, kv_len); ++column) {
      const bool visible = reference::Visible(args.rule, q, column);
      switch (out_dtype) {
        case DType::kU32: {
          uint32_t word = 0;
          for (int bit = 0; bit < 32; ++bit) {
            word |= uint32_t{reference::Visible(args.rule, q, column * 32 + bit)} << bit;
          }
          AppendBytes(out.bytes, word);
          break;
        }
        case DType::kBool:
          AppendBytes(out.bytes, uint8_t{visible});
          break;
        default:
          DispatchFloat(out_dtype, [&]<typename T>() {
            AppendBytes(out.bytes, FromFloat<T>(visible ? 0.0f : hidden));
          });
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
  return cases;
}

Case Case::Random(Rng& rng) {
  Case c;
  c.q_len = rng.Integer(0, 80);
  c.kv_len = rng.Chance(0.3) ? c.q_len : rng.Integer(0, 400);
  c.causal = static_cast<Causal>(rng.Integer(0, 2));
  c.window_left = rng.Chance(0.5) ? -1 : rng.Integer(0, 200);
  c.window_right = rng.Chance(0.5) ? -1 : rng.Integer(0, 200);
  c.out_dtype = rng.Pick(kDTypes);
  c.out_layout = rng.Chance(0.5) ? Layout::kContiguous : Layout::kPadded;
  return c;
}

}  // namespace tandem::cases
