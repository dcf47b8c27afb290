// Cases of attention (core/ops/attention.h).
#pragma once

#include <string>
#include <vector>

#include "core/ops/attention.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"

namespace tandem::cases {

// What the inputs hold, beside random normals.
enum class AttentionValues : uint8_t {
  kNormal,
  kLarge,     // scores far beyond the range of f16
  kNanFirst,  // NaN in key and value 0: the rows that see it become NaN, no other
  kNanLast,   // NaN in the last key and value
  kNanQuery,  // NaN in the first query
};
template <>
inline constexpr std::array<std::string_view, 5> kEnumNames<AttentionValues> = {
    "normal", "large", "nan_first", "nan_last", "nan_query"};

struct AttentionCase {
  using Args = AttentionArgs;

  int64_t batch = 1;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t q_len = 1;
  int64_t kv_len = 1;    // keys in the cache
  int64_t new_len = -1;  // keys beside it; -1: not given
  int64_t head_dim = 64;
  int64_t v_head_dim = 0;  // 0: as head_dim
  DType q_dtype = DType::kF32;
  DType kv_dtype = DType::kF32;
  DType new_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;
  int64_t window_right = -1;
  std::optional<float> scale = std::nullopt;
  bool lse = false;
  Layout q_layout = Layout::kContiguous;
  Layout kv_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  AttentionValues values = AttentionValues::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("batch", self.batch);
    visit("q_heads", self.q_heads);
    visit("kv_heads", self.kv_heads);
    visit("q_len", self.q_len);
    visit("kv_len", self.kv_len);
    visit("new_len", self.new_len);
    visit("head_dim", self.head_dim);
    visit("v_head_dim", self.v_head_dim);
    visit("q_dtype", self.q_dtype);
    visit("kv_dtype", self.kv_dtype);
    visit("new_dtype", self.new_dtype);
    visit("out_dtype", self.out_dtype);
    visit("causal", self.causal);
    visit("window_left", self.window_left);
    visit("window_right", self.window_right);
    visit("scale", self.scale);
    visit("lse", self.lse);
    visit("q_layout", self.q_layout);
    visit("kv_layout", self.kv_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  AttentionArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const AttentionArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<AttentionCase> Grid(GridSize size);
  static AttentionCase Random(Rng& rng);
};

}  // namespace tandem::cases
