// The mask rule and the softmax state against their definitions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/mask_rule.h"
#include "core/ops/online_softmax.h"
#include "tests/cases/fields.h"
#include "tests/cases/random.h"
#include "tests/reference/visible.h"

namespace tandem {
namespace {

std::string Text(const MaskRule& rule) {
  return absl::StrCat("q_len ", rule.q_len, " kv_len ", rule.kv_len, " causal ",
                      cases::FieldText(rule.causal), " left ", rule.window_left, " right ",
                      rule.window_right, " chunk ", rule.chunk, " prefix ", rule.prefix_len,
                      " start ", rule.kv_begin, " before ", rule.keys_before, " after ",
                      rule.keys_after);
}

void ExpectRange(const MaskRule& rule, int64_t q) {
  const KeyRange range = rule.Range(q);
  ASSERT_LE(0, range.begin) << Text(rule);
  ASSERT_LE(range.begin, range.end) << Text(rule);
  ASSERT_LE(range.end, rule.kv_len) << Text(rule);
}

TEST(MaskRule, AgreesWithItsDefinitionOnEverySmallShape) {
  for (Causal causal : {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft}) {
    for (int64_t q_len = 0; q_len <= 6; ++q_len) {
      for (int64_t kv_len = 0; kv_len <= 6; ++kv_len) {
        for (int64_t left = -1; left <= 8; ++left) {
          for (int64_t right = -1; right <= 8; ++right) {
            const MaskRule rule{q_len, kv_len, causal, left, right};
            for (int64_t q = 0; q < q_len; ++q) {
              ExpectRange(rule, q);
              for (int64_t k = -1; k <= kv_len; ++k) {
                ASSERT_EQ(rule.Visible(q, k), reference::Visible(rule, q, k))
                    << Text(rule) << ": " << q << ", " << k;
              }
            }
          }
        }
      }
    }
  }
}

TEST(MaskRule, AgreesWithItsDefinitionWithChunksPrefixesAndPadding) {
  for (Causal causal : {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft}) {
    for (int64_t q_len = 0; q_len <= 6; ++q_len) {
      for (int64_t kv_len = 0; kv_len <= 6; ++kv_len) {
        for (int64_t chunk = 0; chunk <= 7; ++chunk) {
          for (int64_t prefix = 0; prefix <= 7; ++prefix) {
            for (int64_t start = 0; start <= 7; ++start) {
              for (int64_t window : {-1, 2}) {
                const MaskRule rule{q_len, kv_len, causal, window, window, chunk, prefix, start};
                KeyRange before = {0, 0};
                for (int64_t q = 0; q < q_len; ++q) {
                  ExpectRange(rule, q);
                  const KeyRange range = rule.Range(q);
                  ASSERT_LE(before.begin, range.begin) << Text(rule);
                  ASSERT_LE(before.end, range.end) << Text(rule);
                  if (q > 0 && chunk == 0) {
                    ASSERT_LE(range.begin - before.begin, 1) << Text(rule);
                    ASSERT_LE(range.end - before.end, 1) << Text(rule);
                  }
                  before = range;
                  for (int64_t k = -1; k <= kv_len; ++k) {
                    ASSERT_EQ(rule.Visible(q, k), reference::Visible(rule, q, k))
                        << Text(rule) << ": " << q << ", " << k;
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

// The part's key j is the whole's key keys_before + j, and positions move along.
TEST(MaskRule, PartsOfASequenceShowWhatTheWholeShows) {
  cases::Rng rng(3);
  for (int i = 0; i < 30'000; ++i) {
    MaskRule whole;
    whole.q_len = rng.Integer(0, 8);
    whole.kv_len = rng.Integer(0, 12);
    whole.causal = static_cast<Causal>(rng.Integer(0, 2));
    whole.window_left = rng.Integer(-1, 9);
    whole.window_right = rng.Integer(-1, 9);
    whole.chunk = rng.Chance(0.5) ? 0 : rng.Integer(1, 9);
    whole.prefix_len = rng.Integer(0, 13);
    whole.kv_begin = rng.Chance(0.5) ? 0 : rng.Integer(0, 13);
    MaskRule part = whole;
    part.keys_before = rng.Integer(0, whole.kv_len);
    part.kv_len = rng.Integer(0, whole.kv_len - part.keys_before);
    part.keys_after = whole.kv_len - part.keys_before - part.kv_len;
    for (int64_t q = 0; q < whole.q_len; ++q) {
      ExpectRange(part, q);
      ASSERT_EQ(part.Position(q) + part.keys_before, whole.Position(q)) << Text(part);
      for (int64_t k = 0; k < part.kv_len; ++k) {
        ASSERT_EQ(part.Visible(q, k), whole.Visible(q, k + part.keys_before))
            << Text(part) << ": " << q << ", " << k;
        ASSERT_EQ(part.Visible(q, k), reference::Visible(part, q, k)) << Text(part);
      }
    }
  }
}

// Of a cache of 12 rows the part has rows 4..8; two new keys stand behind the cache.
TEST(MaskRule, LengthsOfAPart) {
  struct Lengths {
    int64_t length, cached, keys_before, keys_after;
  };
  for (const Lengths& l : {Lengths{0, 0, 0, 0},
                           {3, 0, 3, 0},
                           {4, 0, 4, 0},
                           {6, 2, 4, 0},
                           {9, 5, 4, 0},
                           {10, 5, 4, 1},
                           {12, 5, 4, 3}}) {
    MaskRule rule{.keys_before = 4, .keys_after = 3};
    EXPECT_EQ(rule.SetLength(l.length, 5, 2, 0), l.cached);
    EXPECT_EQ(rule.kv_len, l.cached + 2);
    EXPECT_EQ(rule.keys_before, l.keys_before) << l.length;
    EXPECT_EQ(rule.keys_after, l.keys_after) << l.length;
    MaskRule without{.keys_before = 4, .keys_after = 3};
    EXPECT_EQ(without.SetLength(l.length, 5, 0, 2), l.cached);
    EXPECT_EQ(without.kv_len, l.cached);
    EXPECT_EQ(without.keys_after, l.keys_after + 2) << l.length;
  }
}

// Lengths up to 2^48 (what Validate allows) and windows up to the largest integer: nothing
// overflows.
TEST(MaskRule, AgreesWithItsDefinitionAtExtremes) {
  cases::Rng rng(1);
  const std::vector<int64_t> lengths = {
      0, 1, 2, 64, 1 << 20, (int64_t{1} << 31) + 5, int64_t{1} << 48};
  const std::vector<int64_t> windows = {
      -1,       0, 1, 1000, int64_t{1} << 31, int64_t{1} << 48, int64_t{1} << 62, INT64_MAX - 1,
      INT64_MAX};
  for (int i = 0; i < 100'000; ++i) {
    MaskRule rule;
    rule.q_len = std::max<int64_t>(rng.Pick(lengths), 1);
    rule.kv_len = rng.Pick(lengths);
    rule.causal = static_cast<Causal>(rng.Integer(0, 2));
    rule.window_left = rng.Pick(windows);
    rule.window_right = rng.Pick(windows);
    rule.chunk = std::max<int64_t>(rng.Pick(windows), 0);
    rule.prefix_len = std::max<int64_t>(rng.Pick(windows), 0);
    rule.kv_begin = std::max<int64_t>(rng.Pick(windows), 0);
    rule.keys_before = rng.Chance(0.5) ? 0 : rng.Pick(lengths);
    rule.keys_after = rng.Chance(0.5) ? 0 : rng.Pick(lengths);
    const int64_t q = rng.Chance(0.5) ? rng.Integer(0, rule.q_len - 1)
                                      : rng.Pick<int64_t>({0, rule.q_len - 1, rule.q_len / 2});
    ExpectRange(rule, q);
    const KeyRange range = rule.Range(q);
    for (int64_t k : {range.begin - 1, range.begin, range.end - 1, range.end, int64_t{0},
                      rule.kv_len - 1, rng.Integer(0, rule.kv_len)}) {
      ASSERT_EQ(rule.Visible(q, k), reference::Visible(rule, q, k))
          << Text(rule) << ": " << q << ", " << k;
    }
  }
}

TEST(MaskRule, MoreQueriesThanKeys) {
  const MaskRule rule{.q_len = 5, .kv_len = 2};
  for (int64_t q = 0; q < 3; ++q) EXPECT_EQ(rule.Range(q).end, 0) << "the first rows see nothing";
  EXPECT_EQ(rule.Range(3).end, 1);
  EXPECT_EQ(rule.Range(4).end, 2);
}

TEST(MaskRule, AlignmentIsExplicit) {
  EXPECT_EQ((MaskRule{.q_len = 2, .kv_len = 5, .causal = Causal::kBottomRight}).Range(0).end, 4);
  EXPECT_EQ((MaskRule{.q_len = 2, .kv_len = 5, .causal = Causal::kTopLeft}).Range(0).end, 1);
  EXPECT_EQ((MaskRule{.q_len = 2, .kv_len = 5, .causal = Causal::kNone}).Range(0).end, 5);
}

SoftmaxState Of(const std::vector<float>& scores) {
  SoftmaxState state;
  for (float s : scores) state.Merge({s, s == kNegInf ? 0.0f : 1.0f});
  return state;
}

TEST(SoftmaxState, MergeOfSplitsIsTheWhole) {
  cases::Rng rng(2);
  for (int i = 0; i < 1000; ++i) {
    std::vector<float> scores(static_cast<size_t>(rng.Integer(1, 60)));
    for (float& s : scores) {
      s = rng.Chance(0.2) ? kNegInf : static_cast<float>(rng.Normal() * 50);
    }
    const auto cut = scores.begin() + rng.Integer(0, static_cast<int64_t>(scores.size()));
    SoftmaxState left = Of({scores.begin(), cut});
    const SoftmaxState right = Of({cut, scores.end()});
    SoftmaxState other_way = right;
    other_way.Merge(left);
    left.Merge(right);
    double largest = -INFINITY, sum = 0;
    for (float s : scores) largest = std::max<double>(largest, s);
    for (float s : scores) sum += s == kNegInf ? 0.0 : std::exp(s - largest);
    EXPECT_EQ(left.max, static_cast<float>(largest));
    EXPECT_NEAR(left.sum, sum, 1e-5 * sum);
    EXPECT_EQ(other_way.max, left.max);
    EXPECT_EQ(other_way.sum, left.sum) << "merging is symmetric";
    if (sum > 0) {
      EXPECT_NEAR(left.LogSumExp(), largest + std::log(sum), 1e-5 * (1 + std::fabs(largest)));
    } else {
      EXPECT_EQ(left.LogSumExp(), kNegInf);
    }
  }
}

TEST(SoftmaxState, EmptyIsNeutral) {
  SoftmaxState state{3.0f, 2.5f};
  const SoftmaxState::Scales right = state.Merge({});
  EXPECT_EQ(state.max, 3.0f);
  EXPECT_EQ(state.sum, 2.5f);
  EXPECT_EQ(right.self, 1.0f);
  EXPECT_EQ(right.other, 0.0f);
  SoftmaxState empty;
  const SoftmaxState::Scales left = empty.Merge({3.0f, 2.5f});
  EXPECT_EQ(empty.max, 3.0f);
  EXPECT_EQ(empty.sum, 2.5f);
  EXPECT_EQ(left.self, 0.0f);
  EXPECT_EQ(left.other, 1.0f);
}

TEST(SoftmaxState, TwoEmptyStatesStayEmptyWithoutNan) {
  SoftmaxState state;
  const SoftmaxState::Scales scales = state.Merge({});
  EXPECT_EQ(state.max, kNegInf);
  EXPECT_EQ(state.sum, 0.0f);
  EXPECT_EQ(scales.self, 0.0f);
  EXPECT_EQ(scales.other, 0.0f);
  EXPECT_EQ(state.Normalizer(), 0.0f);
  EXPECT_EQ(state.LogSumExp(), kNegInf);
}

TEST(SoftmaxState, NanStaysNan) {
  const float nan = std::nanf("");
  SoftmaxState state{1.0f, 2.0f};
  state.Merge({5.0f, nan});
  EXPECT_TRUE(std::isnan(state.Normalizer()));
  EXPECT_TRUE(std::isnan(state.LogSumExp()));
  SoftmaxState survivor{kNegInf, nan};  // NaN scores never raise the maximum
  survivor.Merge({5.0f, 1.0f});
  EXPECT_TRUE(std::isnan(survivor.LogSumExp()));
  SoftmaxState late{5.0f, 1.0f};
  late.Merge({kNegInf, nan});
  EXPECT_TRUE(std::isnan(late.LogSumExp()));
}

TEST(SoftmaxState, DistantMaximaDoNotOverflow) {
  SoftmaxState state{-1e30f, 1.0f};
  state.Merge({1e30f, 1.0f});
  EXPECT_EQ(state.max, 1e30f);
  EXPECT_EQ(state.sum, 1.0f);
  EXPECT_EQ(state.LogSumExp(), 1e30f);
}

}  // namespace
}  // namespace tandem
