// Cases of merge_attention (core/ops/merge_attention.h): attention over random keys, cut into
// parts, against attention over all of them.
#pragma once

#include <string>
#include <vector>

#include "core/ops/merge_attention.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"

namespace tandem::cases {

// What the queries see. Parts without a visible key hold NaN.
enum class MergeKeys : uint8_t {
  kAll,
  kSomeParts,  // a row sees about half of the parts; the first row none
  kOnePart,    // every row sees one part
  kNothing,
};
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<MergeKeys> = {"all", "some_parts",
                                                                          "one_part", "nothing"};

enum class MergeValues : uint8_t {
  kNormal,
  kLarge,  // log-sum-exps thousands apart: exponentials of their differences overflow
  kZeros,  // zero queries: the log-sum-exp of a part of one key is 0, which is not "unset"
  kNan,    // NaN in the first key
};
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<MergeValues> = {"normal", "large",
                                                                            "zeros", "nan"};

struct MergeAttentionCase {
  using Args = MergeAttentionArgs;

  int64_t parts = 2;
  int64_t batch = 1;
  int64_t heads = 1;
  int64_t q_len = 1;
  int64_t kv_len = 100;  // of all parts; cut at random, so that parts may be empty
  int64_t head_dim = 64;
  DType part_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  bool mixed = false;  // every second part is f16
  bool lse = true;
  bool in_place = false;  // out and lse are those of the first part
  MergeKeys keys = MergeKeys::kAll;
  MergeValues values = MergeValues::kNormal;
  Layout part_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("parts", self.parts);
    visit("batch", self.batch);
    visit("heads", self.heads);
    visit("q_len", self.q_len);
    visit("kv_len", self.kv_len);
    visit("head_dim", self.head_dim);
    visit("part_dtype", self.part_dtype);
    visit("out_dtype", self.out_dtype);
    visit("mixed", self.mixed);
    visit("lse", self.lse);
    visit("in_place", self.in_place);
    visit("keys", self.keys);
    visit("values", self.values);
    visit("part_layout", self.part_layout);
    visit("out_layout", self.out_layout);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  MergeAttentionArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const MergeAttentionArgs& args) const;
  std::string DTypeLabel() const;

  // Layout of the parts that are only read.
  Layout SharedLayout() const;

  static std::vector<MergeAttentionCase> Grid(GridSize size);
  static MergeAttentionCase Random(Rng& rng);
};

}  // namespace tandem::cases
