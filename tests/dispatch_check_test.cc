// The full grid and the property cases over every registered kernel; instruction sets forced in
// turn; the same bits at any thread count.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <ostream>

#include "dispatch/context.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "tests/cases/all_cases.h"
#include "tests/cases/check.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

std::vector<std::string> AllOps() {
  std::vector<std::string> ops;
  ForEachCaseType([&]<typename Case>() { ops.push_back(OpNameOf<Case>()); });
  return ops;
}

void ExpectAllPass(const absl::StatusOr<CheckReport>& report) {
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_GT(report->passed(), 0);
  EXPECT_EQ(report->failed(), 0) << CheckTable(*report, /*by_dtype=*/true);
  EXPECT_THAT(report->never_run, IsEmpty());
}

// The cases of one op are cut into parts, so that test shards take equal shares.
constexpr int64_t kParts = 4;

struct Part {
  std::string op;
  int64_t part;

  friend void PrintTo(const Part& p, std::ostream* out) { *out << p.op << " part " << p.part; }
};
std::vector<Part> AllParts() {
  std::vector<Part> parts;
  for (const std::string& op : AllOps()) {
    for (int64_t part = 0; part < kParts; ++part) parts.push_back({op, part});
  }
  return parts;
}

// What sanitizers watch takes ten times as long.
constexpr GridSize kLargeGrid = kSanitized ? GridSize::kShort : GridSize::kFull;

class FullGrid : public testing::TestWithParam<Part> {};

TEST_P(FullGrid, EveryKernelIsWithinTolerance) {
  CheckOptions options;
  options.grid = kLargeGrid;
  options.ops = {GetParam().op};
  options.part = GetParam().part;
  options.parts = kParts;
  ExpectAllPass(RunCheck(options));
}

INSTANTIATE_TEST_SUITE_P(Ops, FullGrid, testing::ValuesIn(AllParts()), [](const auto& param) {
  return param.param.op + "_" + std::to_string(param.param.part);
});

class EachOp : public testing::TestWithParam<std::string> {};

TEST_P(EachOp, PropertyCasesAreWithinTolerance) {
  CheckOptions options;
  options.ops = {GetParam()};
  options.random_cases = 150;
  options.random_seed = 20'240'229;
  ExpectAllPass(RunCheck(options));
}

// A kernel that the grid never reaches is not tested.
TEST_P(EachOp, GridReachesEveryKernelOfThisMachine) {
  CheckOptions options;
  options.ops = {GetParam()};
  const absl::StatusOr<CheckReport> report = RunCheck(options);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  std::map<std::string, int64_t> ran;
  std::map<std::string, std::string> reason;
  for (const CheckRow& row : report->rows) {
    ran[row.kernel] += row.passed + row.failed;
    if (reason[row.kernel].empty()) reason[row.kernel] = row.first_unsupported;
  }
  EXPECT_FALSE(ran.empty());
  for (const auto& [kernel, runs] : ran) {
    // What the processor lacks cannot run here.
    if (runs == 0) {
      EXPECT_THAT(reason[kernel], StartsWith("needs ")) << kernel;
    }
  }
}

TEST_P(EachOp, RunsOnEveryInstructionSetForced) {
  int64_t levels = 0;
  for (const std::string isa : {"scalar", "avx2", "avx512"}) {
    CheckOptions options;
    options.ops = {GetParam()};
    options.isas = {isa};
    const absl::StatusOr<CheckReport> report = RunCheck(options);
    if (!report.ok()) {  // the processor lacks it
      EXPECT_NE(isa, "scalar");
      EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(Message(report.status()), HasSubstr(isa));
      continue;
    }
    ++levels;
    ExpectAllPass(report);
    for (const CheckRow& row : report->rows) {
      EXPECT_EQ(row.isa, isa);
      const bool is_avx512 = row.kernel.find("avx512") != std::string::npos;
      const bool is_avx2 = row.kernel.find("avx2") != std::string::npos;
      if ((isa != "avx512" && is_avx512) || (isa == "scalar" && is_avx2)) {
        EXPECT_EQ(row.passed + row.failed, 0)
            << row.kernel << " ran although only " << isa << " is allowed";
      }
    }
  }
  EXPECT_GE(levels, 1);
}

TEST_P(EachOp, SameBitsAtAnyThreadCount) {
  std::vector<std::unique_ptr<Context>> contexts;
  for (int threads : {1, 2, 3, 5}) {
    ContextOptions options;
    options.threads = threads;
    auto context = Context::Create(options);
    ASSERT_TRUE(context.ok()) << context.status().ToString();
    contexts.push_back(*std::move(context));
  }
  int64_t compared = 0;
  ForEachCaseType([&]<typename Case>() {
    if (OpNameOf<Case>() != GetParam()) return;
    for (const Case& c : Case::Grid(GridSize::kShort)) {
      const absl::StatusOr<Prepared<Case>> prepared = Prepare(c);
      ASSERT_TRUE(prepared.ok()) << prepared.status().ToString();
      for (const auto& kernel : KernelsOf<typename Case::Args>(DeviceKind::kCpu)) {
        std::optional<uint64_t> first;
        for (const auto& context : contexts) {
          ContextDevice& device = *context->device(DeviceKind::kCpu);
          const Target target = {
              .backend = device.backend.get(),
              .stream = device.stream.get(),
              .pack = [&](const TensorView& weights) { return PackWeights(*context, weights); }};
          const Outcome outcome = RunPrepared(*prepared, kernel, target);
          if (outcome.kind == Outcome::Kind::kUnsupported) break;
          EXPECT_TRUE(outcome.passed()) << outcome.message;
          if (!first) first = outcome.output_hash;
          EXPECT_EQ(*first, outcome.output_hash)
              << kernel.name << " depends on the number of threads: " << CaseText(c);
          ++compared;
        }
      }
    }
  });
  EXPECT_GT(compared, 0);
}

INSTANTIATE_TEST_SUITE_P(Ops, EachOp, testing::ValuesIn(AllOps()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace tandem::cases
