// Placement of chains, against brute force over every assignment; hysteresis, against the best
// sequence of moves in hindsight.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "dispatch/migration.h"
#include "dispatch/placement.h"
#include "tests/cases/random.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

double Copy(DeviceKind, DeviceKind, int64_t bytes) {
  return 1.0 + 0.01 * static_cast<double>(bytes);
}

// Every assignment; nullopt if none fits.
std::optional<double> BruteForce(const Chain& chain, CopyCost copy, const PlacementLimits& limits) {
  std::optional<double> best;
  for (uint64_t bits = 0; bits < uint64_t{1} << chain.ops.size(); ++bits) {
    double seconds = 0.0;
    PerDevice<int64_t> used;
    DeviceKind at = chain.input_at;
    int64_t flowing = chain.input_bytes;
    for (size_t i = 0; i < chain.ops.size(); ++i) {
      const ChainOp& op = chain.ops[i];
      const DeviceKind d = (bits >> i & 1) != 0 ? kGpu : kCpu;
      const DeviceKind other = d == kCpu ? kGpu : kCpu;
      if (d != at && flowing > 0) seconds += copy(at, d, flowing);
      if (op.operand_bytes[other] > 0) seconds += copy(other, d, op.operand_bytes[other]);
      seconds += op.seconds[d];
      used[d] += op.resident_bytes[d];
      at = d;
      flowing = op.output_bytes;
    }
    if (at != chain.output_at && flowing > 0) seconds += copy(at, chain.output_at, flowing);
    if (std::isinf(seconds) || used[kCpu] > limits.bytes[kCpu] || used[kGpu] > limits.bytes[kGpu]) {
      continue;
    }
    best = std::min(best.value_or(seconds), seconds);
  }
  return best;
}

struct RandomChain {
  Chain chain;
  PlacementLimits limits;
  bool two_limits = false;
};

RandomChain MakeRandom(cases::Rng& rng, int64_t max_ops, bool few_sizes) {
  RandomChain random;
  const int64_t count = rng.Integer(0, max_ops);
  PerDevice<int64_t> total;
  for (int64_t i = 0; i < count; ++i) {
    ChainOp op;
    for (const DeviceKind d : kDeviceKinds) {
      op.seconds[d] = 10.0 * rng.Uniform();
      op.resident_bytes[d] = few_sizes ? 10 * rng.Integer(0, 3) : rng.Integer(0, 100);
      op.operand_bytes[d] = rng.Integer(0, 3) == 0 ? rng.Integer(1, 200) : 0;
      total[d] += op.resident_bytes[d];
    }
    if (rng.Integer(0, 9) == 0) op.seconds[rng.Integer(0, 1) == 0 ? kCpu : kGpu] = kNever;
    op.output_bytes = rng.Integer(0, 300);
    random.chain.ops.push_back(op);
  }
  random.chain.input_at = rng.Integer(0, 1) == 0 ? kCpu : kGpu;
  random.chain.output_at = rng.Integer(0, 1) == 0 ? kCpu : kGpu;
  random.chain.input_bytes = rng.Integer(0, 300);
  random.two_limits = rng.Integer(0, 3) == 0;
  if (rng.Integer(0, 3) != 0) random.limits.bytes[kGpu] = rng.Integer(0, total[kGpu]);
  if (random.two_limits) random.limits.bytes[kCpu] = rng.Integer(0, total[kCpu]);
  return random;
}

TEST(Placement, IsTheBestOfAllAssignments) {
  cases::Rng rng(1);
  int refused = 0, limited = 0, mixed = 0;
  for (int round = 0; round < 3000; ++round) {
    const RandomChain r = MakeRandom(rng, 11, round % 2 == 0);
    const auto expected = BruteForce(r.chain, Copy, r.limits);
    const auto placed = PlaceChain(r.chain, Copy, r.limits);
    SCOPED_TRACE(round);
    if (!expected) {
      EXPECT_EQ(placed.status().code(), absl::StatusCode::kResourceExhausted) << placed.status();
      ++refused;
      continue;
    }
    ASSERT_TRUE(placed.ok()) << placed.status();
    EXPECT_TRUE(placed->optimal);
    EXPECT_NEAR(placed->seconds, *expected, 1e-9);
    EXPECT_EQ(placed->bound_seconds, placed->seconds);
    // What it says of itself is true.
    const auto again = EvaluatePlacement(r.chain, Copy, placed->devices);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->seconds, placed->seconds);
    EXPECT_EQ(again->resident_bytes, placed->resident_bytes);
    for (const DeviceKind d : kDeviceKinds) {
      EXPECT_LE(placed->resident_bytes[d], r.limits.bytes[d]);
    }
    const auto unlimited = PlaceChain(r.chain, Copy);
    ASSERT_TRUE(unlimited.ok());
    EXPECT_LE(unlimited->seconds, placed->seconds);
    limited += unlimited->seconds < placed->seconds - 1e-9 ? 1 : 0;
    mixed += placed->copies > 1 ? 1 : 0;
  }
  EXPECT_GT(refused, 50);
  EXPECT_GT(limited, 500) << "limits that change the answer";
  EXPECT_GT(mixed, 500) << "placements on both devices";
}

// With few labels the answer may be worse, says so, and the bound is one.
TEST(Placement, AHeuristicAnswerSaysHowFarTheBestCouldBe) {
  cases::Rng rng(2);
  int thinned = 0;
  double worst = 1.0, gap = 1.0;
  for (int round = 0; round < 1000; ++round) {
    RandomChain r = MakeRandom(rng, 12, false);
    r.limits.bytes[kCpu] = kNoLimit;
    r.limits.max_labels = 4;
    const auto expected = BruteForce(r.chain, Copy, r.limits);
    const auto placed = PlaceChain(r.chain, Copy, r.limits);
    SCOPED_TRACE(round);
    // One limited device: what fits is always found.
    ASSERT_EQ(placed.ok(), expected.has_value()) << placed.status();
    if (!placed.ok()) continue;
    EXPECT_LE(placed->bound_seconds, *expected + 1e-9);
    EXPECT_GE(placed->seconds, *expected - 1e-9);
    if (placed->optimal) {
      EXPECT_NEAR(placed->seconds, *expected, 1e-9);
      continue;
    }
    ++thinned;
    worst = std::max(worst, placed->seconds / *expected);
    gap = std::max(gap, placed->seconds / placed->bound_seconds);
  }
  EXPECT_GT(thinned, 100);
  EXPECT_LT(worst, 1.5);
  EXPECT_LT(gap, 3.0);
}

ChainOp Op(double cpu, double gpu, int64_t resident = 0, int64_t output = 0) {
  ChainOp op;
  op.seconds = {{cpu, gpu}};
  op.resident_bytes = {{resident, resident}};
  op.output_bytes = output;
  return op;
}

TEST(Placement, WithoutMemoryEverythingWithWeightsStaysOnTheCpu) {
  Chain chain;
  chain.ops = {Op(5, 1, 10), Op(5, 1, 0), Op(5, 1, 10)};
  PlacementLimits limits;
  limits.bytes[kGpu] = 0;
  const auto placed = PlaceChain(chain, Copy, limits);
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_THAT(placed->devices, ElementsAre(kCpu, kGpu, kCpu)) << "nothing flows: copies are free";
  for (ChainOp& op : chain.ops) op.output_bytes = 300;  // 4 seconds
  EXPECT_THAT(PlaceChain(chain, Copy, limits)->devices, ElementsAre(kCpu, kCpu, kCpu));
}

TEST(Placement, FreeCopiesGiveEachOpItsBetterDevice) {
  Chain chain;
  chain.ops = {Op(1, 2, 0, 100), Op(2, 1, 0, 100), Op(1, 2, 0, 100), Op(2, 1, 0, 100)};
  const auto placed = PlaceChain(chain, [](DeviceKind, DeviceKind, int64_t) { return 0.0; });
  ASSERT_TRUE(placed.ok());
  EXPECT_THAT(placed->devices, ElementsAre(kCpu, kGpu, kCpu, kGpu));
  EXPECT_EQ(placed->seconds, 4.0);
}

TEST(Placement, ImpossibleCopiesKeepTheChainOnOneDevice) {
  Chain chain;
  chain.input_at = chain.output_at = kGpu;
  chain.input_bytes = 1;
  chain.ops = {Op(1, 2, 0, 100), Op(1, 2, 0, 100)};
  const auto never = [](DeviceKind, DeviceKind, int64_t) { return kNever; };
  EXPECT_THAT(PlaceChain(chain, never)->devices, ElementsAre(kGpu, kGpu));
  chain.output_at = kCpu;
  EXPECT_EQ(PlaceChain(chain, never).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(Placement, AnOpWithoutATableRunsWhereThereIsOne) {
  Chain chain;
  chain.ops = {Op(9, 1, 0, 10), Op(9, kNever, 0, 10), Op(9, 1, 0, 10)};
  EXPECT_THAT(PlaceChain(chain, Copy)->devices, ElementsAre(kGpu, kCpu, kGpu));
  chain.ops[1] = Op(kNever, kNever);
  const auto nowhere = PlaceChain(chain, Copy);
  EXPECT_EQ(nowhere.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(nowhere.status().message()), HasSubstr("ops[1]"));
}

TEST(Placement, AnEmptyChainMovesItsInputToItsOutput) {
  Chain chain;
  chain.input_bytes = 100;
  chain.output_at = kGpu;
  const auto placed = PlaceChain(chain, Copy);
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_EQ(placed->seconds, 2.0);
  EXPECT_EQ(placed->copies, 1);
}

TEST(Placement, OperandsThatStayBehindAreCopiedEveryTime) {
  Chain chain;
  chain.ops = {Op(5, 1)};
  chain.ops[0].operand_bytes[kCpu] = 1000;  // 11 seconds
  EXPECT_THAT(PlaceChain(chain, Copy)->devices, ElementsAre(kCpu));
  chain.ops[0].operand_bytes[kCpu] = 200;  // 3
  EXPECT_THAT(PlaceChain(chain, Copy)->devices, ElementsAre(kGpu));
}

TEST(Placement, BadNumbersAreNamed) {
  Chain chain;
  chain.ops = {Op(1, 1), Op(-1, 1)};
  const auto message = [&](const PlacementLimits& limits = {}) {
    const auto placed = PlaceChain(chain, Copy, limits);
    EXPECT_EQ(placed.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(placed.status().message());
  };
  EXPECT_THAT(message(), HasSubstr("ops[1].seconds[cpu]"));
  chain.ops[1] = Op(1, std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(message(), HasSubstr("ops[1].seconds[cuda]"));
  chain.ops[1] = Op(1, 1, -5);
  EXPECT_THAT(message(), HasSubstr("ops[1]"));
  chain.ops[1] = Op(1, 1, 0, -1);
  EXPECT_THAT(message(), HasSubstr("output_bytes"));
  chain.ops[1] = Op(1, 1);
  EXPECT_THAT(message({{{-1, 0}}, 1}), HasSubstr("limits.bytes[cpu]"));
  EXPECT_THAT(message({{{0, 0}}, 0}), HasSubstr("max_labels"));
  EXPECT_EQ(EvaluatePlacement(chain, Copy, {kCpu}).status().code(),
            absl::StatusCode::kInvalidArgument);
  chain.input_bytes = 1;
  chain.output_at = kGpu;
  EXPECT_EQ(PlaceChain(chain, [](DeviceKind, DeviceKind, int64_t) { return -1.0; }).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Sums of bytes beyond 64 bits do not wrap around into what fits.
TEST(Placement, HugeBytesDoNotFit) {
  Chain chain;
  chain.ops = {Op(9, 1, kNoLimit - 1), Op(9, 1, kNoLimit - 1)};
  chain.ops[0].resident_bytes[kCpu] = chain.ops[1].resident_bytes[kCpu] = 0;
  PlacementLimits limits;
  limits.bytes[kGpu] = kNoLimit - 1;
  const auto placed = PlaceChain(chain, Copy, limits);
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_EQ(std::count(placed->devices.begin(), placed->devices.end(), kGpu), 1);
}

// 160 half-layers of two sizes: labels stay few, so the answer is exact and quick.
TEST(Placement, EightyLayersAreExact) {
  for (int64_t fits = 0; fits <= 160; fits += 16) {
    Chain chain;
    for (int i = 0; i < 80; ++i) {
      chain.ops.push_back(Op(3.0, 0.5, 300, 100));
      chain.ops.push_back(Op(8.0, 1.0, 1000, 100));
    }
    PlacementLimits limits;
    limits.bytes[kGpu] = 500 * fits + 100;
    const auto placed = PlaceChain(chain, Copy, limits);
    ASSERT_TRUE(placed.ok()) << placed.status();
    EXPECT_TRUE(placed->optimal);
    EXPECT_LE(placed->copies, 2) << "one block of layers";
  }
}

TEST(CacheHysteresis, MovesForASavingThatExceedsTheCost) {
  CacheHysteresis hysteresis({.epsilon = 0.1});
  MigrationStep step = {.here = 2.0, .there = 1.0, .move = 100.0, .steps_left = 110};
  EXPECT_FALSE(hysteresis.Decide(step).migrate) << "110 is not more than 110";
  step.steps_left = 111;
  EXPECT_TRUE(hysteresis.Decide(step).migrate);
  EXPECT_THAT(Explain(hysteresis.Decide(step)), HasSubstr("moves"));
  step.there = 3.0;
  EXPECT_FALSE(hysteresis.Decide(step).migrate);
  step.steps_left = 0;
  EXPECT_FALSE(hysteresis.Decide(step).migrate);
}

TEST(CacheHysteresis, WaitsForTheCostToHaveBeenMissedIfTheEndIsUnknown) {
  CacheHysteresis hysteresis({.epsilon = 0.1});
  const MigrationStep step = {.here = 2.0, .there = 1.0, .move = 10.0, .steps_left = {}};
  int steps = 0;
  MigrationDecision decision;
  do {
    decision = hysteresis.Decide(step);
    ++steps;
  } while (!decision.migrate && steps < 100);
  EXPECT_EQ(steps, 12);
  EXPECT_EQ(hysteresis.missed_seconds(), 0.0) << "begins anew";
  EXPECT_THAT(Explain(decision), HasSubstr("so far"));
}

TEST(CacheHysteresis, DoesNotGoToAndFro) {
  // The other device is better by a tenth of the cost, then worse by as much, for ever.
  CacheHysteresis hysteresis;
  for (int i = 0; i < 1000; ++i) {
    const double other = i % 2 == 0 ? 0.9 : 1.1;
    EXPECT_FALSE(
        hysteresis.Decide({.here = 1.0, .there = other, .move = 1.0, .steps_left = {}}).migrate);
  }
}

TEST(CacheHysteresis, StaysWhereNumbersAreNone) {
  CacheHysteresis hysteresis;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const MigrationStep& step :
       {MigrationStep{nan, 1, 1, 10}, MigrationStep{2, nan, 1, 10}, MigrationStep{2, 1, nan, 10},
        MigrationStep{2, -1, 1, {}}, MigrationStep{5, kNever, 0, 10},
        MigrationStep{5, 1, kNever, {}}, MigrationStep{kNever, kNever, 1, {}}}) {
    EXPECT_FALSE(hysteresis.Decide(step).migrate);
    EXPECT_EQ(hysteresis.missed_seconds(), 0.0);
  }
  EXPECT_TRUE(hysteresis.Decide({kNever, 1, 1, {}}).migrate) << "it cannot stay";
}

// Random walks of the two devices' times: never worse than the bound of migration.h times the best
// sequence of moves in hindsight.
TEST(CacheHysteresis, IsCompetitiveWithHindsight) {
  cases::Rng rng(3);
  constexpr double kMove = 50.0, kLargest = 1.0;
  for (const double epsilon : {0.0, 0.1, 1.0}) {
    const double t = 1.0 + epsilon;
    const double ratio = 2.0 * (1.0 + t) / std::min(t, 2.0);
    double worst = 0.0;
    for (int round = 0; round < 200; ++round) {
      CacheHysteresis hysteresis({.epsilon = epsilon});
      const int64_t period = rng.Integer(1, 400);
      size_t at = 0;
      double paid = 0.0;
      std::array<double, 2> best = {0.0, kMove};  // hindsight: cheapest way to be at 0, at 1
      bool first_is_slow = true;
      for (int64_t i = 0; i < 2000; ++i) {
        if (i % period == 0) first_is_slow = !first_is_slow;
        const double slow = kLargest * rng.Uniform();
        const std::array<double, 2> cost = {first_is_slow ? slow : 0.0, first_is_slow ? 0.0 : slow};
        const MigrationDecision decision =
            hysteresis.Decide({cost[at], cost[1 - at], kMove, std::nullopt});
        if (decision.migrate) {
          at = 1 - at;
          paid += kMove;
        }
        paid += cost[at];
        best = {best[0] + cost[0], best[1] + cost[1]};
        best = {std::min(best[0], best[1] + kMove), std::min(best[1], best[0] + kMove)};
      }
      const double hindsight = std::min(best[0], best[1]);
      // The last phase may be unfinished: a constant that does not grow with the sequence.
      EXPECT_LE(paid, ratio * (1.0 + kLargest / kMove) * hindsight + 2.0 * (1.0 + t) * kMove)
          << "epsilon " << epsilon << ", round " << round;
      worst = std::max(worst, paid / std::max(hindsight, kMove));
    }
    EXPECT_GT(worst, 1.5) << "the sequences are hard enough to tell";
  }
}

}  // namespace
}  // namespace tandem
