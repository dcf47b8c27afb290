// Shares for two devices: against all shares tried, on made-up machines.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "dispatch/split_choice.h"
#include "tests/cases/random.h"

namespace tandem::cases {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// A device: overhead and a rate, slower beyond what its cache holds.
struct Line {
  double start = 0.0, per_share = 1.0, cache = kNever, beyond = 1.0;
  double operator()(int64_t share) const {
    const double n = static_cast<double>(share);
    return start + per_share * (n + (beyond - 1.0) * std::max(0.0, n - cache));
  }
};

double SecondsOf(const SplitProblem& p, const Line& cpu, const Line& gpu, int64_t g) {
  if (g == 0) return p.total <= p.cpu_most ? cpu(p.total) : kNever;
  if (g == p.total) return p.total <= p.gpu_most ? gpu(p.total) : kNever;
  if (g > p.gpu_most || p.total - g > p.cpu_most || g % p.step != 0) return kNever;
  return std::max({p.queue_seconds + cpu(p.total - g), gpu(g), p.least_seconds}) + p.join_seconds;
}

TEST(SplitChoiceTest, IsTheBestOfAllShares) {
  Rng rng(1);
  int both = 0, cpu_only = 0, gpu_only = 0, bound = 0;
  for (int i = 0; i < 2000; ++i) {
    SplitProblem p;
    p.total = rng.Integer(1, 700);
    p.step = rng.Pick<int64_t>({1, 1, 16, 32, 100});
    p.gpu_most = rng.Chance(0.5) ? p.total : rng.Integer(0, p.total);
    p.queue_seconds = rng.Chance(0.5) ? 0.0 : rng.Uniform() * 50.0;
    p.join_seconds = rng.Chance(0.5) ? 0.0 : rng.Uniform() * 50.0;
    p.least_seconds = rng.Chance(0.7) ? 0.0 : rng.Uniform() * 200.0;
    const auto line = [&] {
      return Line{rng.Uniform() * 100.0, 0.01 + rng.Uniform() * 3.0,
                  static_cast<double>(rng.Integer(0, 700)), 1.0 + rng.Uniform() * 4.0};
    };
    const Line cpu = line(), gpu = line();
    const auto choice = ChooseSplit(p, cpu, gpu);
    ASSERT_TRUE(choice.ok()) << choice.status();
    double best = kNever;
    for (int64_t g = 0; g <= p.total; ++g) best = std::min(best, SecondsOf(p, cpu, gpu, g));
    SCOPED_TRACE(absl::StrCat("problem ", i, ": ", Explain(*choice, "rows")));
    EXPECT_DOUBLE_EQ(choice->seconds, best);
    EXPECT_DOUBLE_EQ(choice->seconds, SecondsOf(p, cpu, gpu, choice->gpu));
    EXPECT_LE(choice->seconds, std::min(choice->cpu_alone, choice->gpu_alone));
    (choice->gpu == 0 ? cpu_only : choice->gpu == p.total ? gpu_only : both) += 1;
    bound += choice->memory_bound;
  }
  EXPECT_GT(both, 200);
  EXPECT_GT(cpu_only, 100);
  EXPECT_GT(gpu_only, 100);
  EXPECT_GT(bound, 20);
}

// Both finish together, where there is work enough and room.
TEST(SplitChoiceTest, BothFinishTogether) {
  const Line cpu = {10e-6, 4e-9}, gpu = {30e-6, 1e-9};
  for (const int64_t total : {100'000, 1'000'000, 100'000'000}) {
    const auto choice = ChooseSplit({.total = total, .gpu_most = total}, cpu, gpu);
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_NEAR(choice->cpu_seconds, choice->gpu_seconds, 10e-9);
    // The sum of both speeds, but for the overheads.
    EXPECT_NEAR(choice->gpu_fraction(), 0.8, total == 100'000 ? 0.05 : 0.005);
  }
}

// A faster GPU, more memory: its share never becomes smaller. A faster CPU: never larger.
TEST(SplitChoiceTest, SharesAreMonotone) {
  const auto share = [](double cpu_rate, double gpu_rate, int64_t gpu_most) {
    const Line cpu = {1e-6, cpu_rate}, gpu = {1e-6, gpu_rate};
    return ChooseSplit({.total = 10'000, .step = 32, .gpu_most = gpu_most}, cpu, gpu).value().gpu;
  };
  int64_t before = 0;
  for (double rate = 20e-9; rate > 0.01e-9; rate *= 0.7) {
    const int64_t now = share(5e-9, rate, 10'000);
    EXPECT_GE(now, before);
    before = now;
  }
  EXPECT_GT(before, 9'900);
  before = 0;
  for (int64_t most = 0; most <= 10'000; most += 250) {
    const int64_t now = share(5e-9, 1e-9, most);
    EXPECT_GE(now, before);
    EXPECT_LE(now, most);
    before = now;
  }
  before = 10'000;
  for (double rate = 50e-9; rate > 0.1e-9; rate *= 0.7) {
    const int64_t now = share(rate, 1e-9, 10'000);
    EXPECT_LE(now, before);
    before = now;
  }
}

// Times that are not monotone, as of tables with noise: near the best, and never worse than one
// device alone.
TEST(SplitChoiceTest, NoisyTimes) {
  Rng rng(2);
  for (int i = 0; i < 200; ++i) {
    std::vector<double> noise(1001);
    for (double& n : noise) n = 0.98 + 0.04 * rng.Uniform();
    const double ratio = std::exp(rng.Uniform() * 6.0 - 3.0);
    const auto cpu = [&](int64_t n) {
      return (20.0 + static_cast<double>(n)) * noise[static_cast<size_t>(n)];
    };
    const auto gpu = [&](int64_t n) {
      return (60.0 + ratio * static_cast<double>(n)) * noise[static_cast<size_t>(1000 - n)];
    };
    const SplitProblem p = {.total = 1000, .gpu_most = 1000, .join_seconds = 5.0};
    const auto choice = ChooseSplit(p, cpu, gpu);
    ASSERT_TRUE(choice.ok()) << choice.status();
    double best = std::min(cpu(1000), gpu(1000));
    for (int64_t g = 1; g < 1000; ++g) best = std::min(best, std::max(cpu(1000 - g), gpu(g)) + 5.0);
    EXPECT_LE(choice->seconds, 1.04 * best);
    EXPECT_LE(choice->seconds, std::min(choice->cpu_alone, choice->gpu_alone));
  }
}

TEST(SplitChoiceTest, WhatCannotBe) {
  const Line line = {0.0, 1.0};
  const auto never = [](int64_t) { return kNever; };
  const auto nan = [](int64_t) { return std::nan(""); };
  using Code = absl::StatusCode;
  EXPECT_EQ(ChooseSplit({.total = 0}, line, line).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(ChooseSplit({.total = 4, .step = 0}, line, line).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(ChooseSplit({.total = 4, .gpu_most = -1}, line, line).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(ChooseSplit({.total = 4}, nan, line).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(ChooseSplit({.total = 4, .gpu_most = 4}, never, never).status().code(),
            Code::kUnimplemented);
  // One of them cannot: the other does everything.
  EXPECT_EQ(ChooseSplit({.total = 4, .gpu_most = 4}, never, line)->gpu, 4);
  EXPECT_EQ(ChooseSplit({.total = 4, .gpu_most = 4}, line, never)->gpu, 0);
  // Neither has room for everything.
  const auto squeezed =
      ChooseSplit({.total = 100, .gpu_most = 60, .cpu_most = 50}, line, Line{1000.0, 1.0});
  ASSERT_TRUE(squeezed.ok()) << squeezed.status();
  EXPECT_EQ(squeezed->gpu, 50);
  EXPECT_EQ(ChooseSplit({.total = 100, .gpu_most = 40, .cpu_most = 50}, line, line).status().code(),
            Code::kUnimplemented);
}

TEST(SplitChoiceTest, Explains) {
  const Line cpu = {0.0, 4e-6}, gpu = {0.0, 1e-6};
  EXPECT_EQ(Explain(*ChooseSplit({.total = 1000, .gpu_most = 1000}, cpu, gpu), "rows"),
            "800 of 1000 rows on the GPU (0.8 ms), the others on the CPU (0.8 ms): 0.8 ms "
            "together; alone the CPU takes 4 ms, the GPU 1 ms");
  EXPECT_EQ(Explain(*ChooseSplit({.total = 1000, .gpu_most = 300}, cpu, gpu), "rows"),
            "300 of 1000 rows on the GPU (0.3 ms), the others on the CPU (2.8 ms): 2.8 ms "
            "together; alone the CPU takes 4 ms, the GPU forever; more do not fit in the GPU's "
            "memory");
  EXPECT_EQ(Explain(*ChooseSplit({.total = 1000}, cpu, gpu), "rows"),
            "all 1000 rows on the CPU: 4 ms; the GPU alone takes forever; more do not fit in the "
            "GPU's memory");
}

}  // namespace
}  // namespace tandem::cases
