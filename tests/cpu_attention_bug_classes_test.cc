// One test per class of bugs that attention implementations are known for, over every kernel.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "tests/cases/attention_cases.h"
#include "tests/cpu_attention_testing.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using Case = AttentionCase;
using Extents = AttentionExtents;

// A CPU with this many threads.
struct Cpu {
  explicit Cpu(int threads) {
    cpu::CpuOptions options;
    options.threads = threads;
    backend = cpu::MakeCpuBackend(options).value();
    stream = backend->CreateStream().value();
  }
  Target target() const { return {.backend = backend.get(), .stream = stream.get(), .pack = {}}; }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

// Runs the case on every kernel; `shows(prepared)` says that it holds what the test is about.
template <typename Shows>
void ExpectRight(const std::vector<Case>& all, Shows shows) {
  const Cpu machine(2);
  for (const Case& c : all) {
    SCOPED_TRACE(CaseText(c));
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status().ToString();
    EXPECT_TRUE(shows(*prepared)) << "the case does not show what it should";
    int64_t runs = 0;
    for (const auto& kernel : cpu::Kernels<AttentionArgs>()) {
      const Outcome outcome = RunPrepared(*prepared, kernel, machine.target());
      EXPECT_FALSE(outcome.failed()) << kernel.name << ": " << outcome.message;
      runs += outcome.passed();
    }
    EXPECT_GT(runs, 0);
  }
}

using AttentionPrepared = Prepared<Case>;

// Of what must come out: out, or lse.
std::vector<double> Expected(const AttentionPrepared& prepared, std::string_view operand) {
  for (const Expectation& expectation : prepared.expectations) {
    if (expectation.operand == operand) return expectation.expected;
  }
  return {};
}

int64_t CountNan(const std::vector<double>& values) {
  return std::count_if(values.begin(), values.end(), [](double x) { return std::isnan(x); });
}

bool HasNan(const AttentionPrepared& prepared, std::string_view operand) {
  return CountNan(reference::ReadAll(prepared.operands.View(operand))) > 0;
}

// One decode and one prefill shape of every setting.
std::vector<Case> DecodeAndPrefill(std::vector<Case> settings) {
  std::vector<Case> cases;
  for (Case& c : settings) {
    c.batch = 2;
    c.q_heads = 4;
    c.kv_heads = 2;
    c.lse = true;
    for (const auto& [q_len, kv_len] : {std::pair(1, 300), std::pair(40, 120)}) {
      c.q_len = q_len;
      c.kv_len = kv_len;
      cases.push_back(c);
    }
  }
  return cases;
}

TEST(AttentionBugClasses, FullyMaskedRows) {
  std::vector<Case> cases = DecodeAndPrefill({
      {.mask = Extents::kFull, .mask_hides = AttentionHidden::kRows, .seed = 3},
      {.mask = Extents::kFull,
       .mask_packed = true,
       .mask_hides = AttentionHidden::kRows,
       .seed = 3},
      {.bias = Extents::kFull, .bias_hides = AttentionHidden::kRows, .seed = 3},
      {.kv_dtype = DType::kI8,
       .bias = Extents::kFull,
       .bias_hides = AttentionHidden::kRows,
       .seed = 3},
  });
  // No keys at all; more queries than keys; positions beyond the window; all left padding.
  cases.push_back({.batch = 2, .q_heads = 2, .q_len = 3, .kv_len = 0, .lse = true});
  cases.push_back({.q_heads = 2, .q_len = 40, .kv_len = 12, .lse = true});
  cases.push_back({.q_heads = 2,
                   .q_len = 40,
                   .kv_len = 12,
                   .causal = Causal::kTopLeft,
                   .window_left = 5,
                   .lse = true});
  cases.push_back(
      {.batch = 6, .q_heads = 2, .kv_len = 200, .ragged_kv = true, .lse = true, .seed = 6});
  cases.push_back(
      {.batch = 9, .q_heads = 2, .kv_len = 200, .left_padding = true, .lse = true, .seed = 4});
  ExpectRight(cases, [](const AttentionPrepared& prepared) {
    const std::vector<double> lse = Expected(prepared, "lse");
    return std::count(lse.begin(), lse.end(), -INFINITY) > 0;
  });
}

TEST(AttentionBugClasses, RealNanTurnedToZero) {
  ExpectRight(DecodeAndPrefill({{.values = AttentionValues::kNanFirst},
                                {.values = AttentionValues::kNanLast},
                                {.values = AttentionValues::kNanQuery},
                                {.softcap = 20.0f, .values = AttentionValues::kNanFirst},
                                {.sinks = true, .values = AttentionValues::kNanLast},
                                {.kv_dtype = DType::kF16, .values = AttentionValues::kNanLast},
                                {.kv_dtype = DType::kI8, .values = AttentionValues::kNanLast}}),
              [](const AttentionPrepared& prepared) {
                return CountNan(Expected(prepared, "out")) > 0 &&
                       CountNan(Expected(prepared, "lse")) > 0;
              });
}

TEST(AttentionBugClasses, MaskedNanLeaking) {
  std::vector<Case> cases = DecodeAndPrefill({
      {.causal = Causal::kTopLeft},
      {.window_left = 30},
      {.chunk = 32},
      {.mask = Extents::kOneHeadAndQuery},
      {.mask = Extents::kOneHeadAndQuery, .mask_packed = true},
      {.bias = Extents::kOneHeadAndQuery},
      {.bias = Extents::kOneHeadAndQuery, .bias_dtype = DType::kF16},
      {.ragged_kv = true, .seed = 5},
      {.left_padding = true, .seed = 6},
      {.page_size = 16},
  });
  // Where one query sees every key, there must be a window to hide any.
  std::erase_if(cases, [](const Case& c) { return c.window_left == 30 && c.q_len > 1; });
  ExpectRight(cases, [](const AttentionPrepared& prepared) {
    return HasNan(prepared, "k") && HasNan(prepared, "v") &&
           CountNan(Expected(prepared, "out")) == 0;
  });
}

// A zero query weights all keys alike: lse is the logarithm of how many it sees.
TEST(AttentionBugClasses, CausalAlignmentWhenQueriesAndKeysDiffer) {
  struct Counts {
    int64_t q_len, cache, fresh;
    Causal causal;
    std::vector<int64_t> visible;
  };
  const Counts all[] = {
      {3, 5, 0, Causal::kBottomRight, {3, 4, 5}},
      {3, 5, 0, Causal::kTopLeft, {1, 2, 3}},
      {3, 5, 0, Causal::kNone, {5, 5, 5}},
      {3, 3, 2, Causal::kBottomRight, {3, 4, 5}},
      {3, 3, 2, Causal::kTopLeft, {1, 2, 3}},
      {5, 3, 0, Causal::kBottomRight, {0, 0, 1, 2, 3}},
      {5, 3, 0, Causal::kTopLeft, {1, 2, 3, 3, 3}},
      {5, 2, 1, Causal::kBottomRight, {0, 0, 1, 2, 3}},
      {1, 7, 0, Causal::kBottomRight, {7}},
      {1, 7, 0, Causal::kTopLeft, {1}},
  };
  cpu::Machine machine(2);
  for (const Counts& counts : all) {
    for (const auto& kernel : cpu::Kernels<AttentionArgs>()) {
      cpu::Problem problem;
      problem.q_len = counts.q_len;
      problem.cache = counts.cache;
      problem.fresh = counts.fresh;
      problem.causal = counts.causal;
      cpu::Tensors tensors(problem);
      tensors.q.ForEach([&](int64_t offset) { tensors.q.Set(offset, 0.0f); });
      const AttentionArgs args = tensors.Args(problem);
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_TRUE(machine.Run(kernel, args).ok());
      for (int64_t i = 0; i < counts.q_len; ++i) {
        const float lse = tensors.lse.Get(tensors.lse.Offset(0, 1, i));
        const auto visible = static_cast<float>(counts.visible[static_cast<size_t>(i)]);
        EXPECT_FLOAT_EQ(lse, std::log(visible))
            << kernel.name << " " << problem.ToString() << " query " << i;
      }
    }
  }
}

TEST(AttentionBugClasses, BroadcastStridesOfZero) {
  std::vector<Case> cases = DecodeAndPrefill({
      {.kv_layout = Layout::kBroadcast},
      {.q_layout = Layout::kBroadcast},
      {.new_len = 3, .q_layout = Layout::kBroadcast},
      {.kv_dtype = DType::kI8, .kv_layout = Layout::kBroadcast},
      {.bias = Extents::kFull, .bias_layout = Layout::kBroadcast},
      {.alibi = true, .sinks = true, .bias_layout = Layout::kBroadcast},
      {.mask = Extents::kFull, .bias_layout = Layout::kBroadcast},
      {.mask = Extents::kFull, .mask_packed = true, .bias_layout = Layout::kBroadcast},
  });
  ExpectRight(cases, [](const AttentionPrepared& prepared) {
    const auto& all = prepared.operands.all();
    return std::any_of(all.begin(), all.end(), [](const Operand& operand) {
      return operand.view.dim(0) > 1 && operand.view.stride(0) == 0;
    });
  });
}

TEST(AttentionBugClasses, DeterminismAcrossThreadCounts) {
  std::vector<Case> cases = DecodeAndPrefill({
      {},
      {.kv_dtype = DType::kF16, .sinks = true},
      {.kv_dtype = DType::kI8},
      {.new_len = 2, .ragged_kv = true, .page_size = 16},
      {.softcap = 15.0f, .bias = Extents::kFull},
      {.mask = Extents::kFull, .mask_packed = true, .queries = AttentionQueries::kPacked},
  });
  cases.push_back({.q_heads = 8, .kv_heads = 2, .kv_len = 5000, .kv_dtype = DType::kBF16});
  std::vector<std::unique_ptr<Cpu>> machines;
  for (int threads : {1, 2, 3, 7}) machines.push_back(std::make_unique<Cpu>(threads));
  for (const Case& c : cases) {
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status().ToString();
    for (const auto& kernel : cpu::Kernels<AttentionArgs>()) {
      std::vector<uint64_t> hashes;
      for (const auto& machine : machines) {
        for (int repetition = 0; repetition < 2; ++repetition) {
          const Outcome outcome = RunPrepared(*prepared, kernel, machine->target());
          EXPECT_FALSE(outcome.failed()) << outcome.message;
          if (outcome.passed()) hashes.push_back(outcome.output_hash);
        }
      }
      EXPECT_EQ(std::adjacent_find(hashes.begin(), hashes.end(), std::not_equal_to<>()),
                hashes.end())
          << kernel.name << " " << CaseText(c);
    }
  }
}

TEST(AttentionBugClasses, F16CacheOf16384KeysWithinRelativeL2OfOneThousandth) {
  ExpectRight({{.q_heads = 4, .kv_len = 16384, .head_dim = 128, .kv_dtype = DType::kF16},
               {.q_heads = 8,
                .kv_heads = 2,
                .kv_len = 16384,
                .q_dtype = DType::kF16,
                .kv_dtype = DType::kF16,
                .out_dtype = DType::kF16},
               {.q_heads = 2,
                .kv_len = 16384,
                .kv_dtype = DType::kF16,
                .ragged_kv = false,
                .page_size = 64}},
              [](const AttentionPrepared& prepared) {
                return prepared.expectations[0].max_relative_l2 <= 1e-3;
              });
}

}  // namespace
}  // namespace tandem::cases
