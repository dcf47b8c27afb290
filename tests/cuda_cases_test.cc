// Every CUDA kernel over the shared cases, on the emulated device, in several orders of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/cases/all_cases.h"
#include "tests/cases/check.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

std::vector<std::string> AllOps() {
  std::vector<std::string> ops;
  ForEachCaseType([&]<typename Case>() { ops.push_back(OpNameOf<Case>()); });
  return ops;
}

void ExpectAllPass(const CheckOptions& options) {
  const auto report = RunCheck(options);
  ASSERT_TRUE(report.ok()) << report.status();
  std::map<std::string, int64_t> passed;  // by kernel: every one of the list has a row
  for (const CheckRow& row : report->rows) {
    EXPECT_EQ(row.device, "cuda:emulated");
    EXPECT_EQ(row.failed, 0) << row.op << "=" << row.kernel << " " << row.dtype << ": "
                             << row.first_failure;
    passed[row.kernel] += row.passed;
  }
  for (const auto& [kernel, runs] : passed) EXPECT_GT(runs, 0) << kernel << " has run no case";
  // What no CUDA kernel takes: indices that only the host can check.
  for (const std::string& text : report->never_run) {
    EXPECT_THAT(text, testing::HasSubstr("bad_id="));
  }
}

class CudaCases : public testing::TestWithParam<std::string> {};

TEST_P(CudaCases, GridInOrder) {
  // Races are found in any order: one is enough.
  if (kThreadSanitized) GTEST_SKIP() << "ShortGridInEveryOrder looks for races";
  CheckOptions options;
  options.devices = {"cuda:emulated"};
  options.ops = {GetParam()};
  options.grid = kSanitized ? GridSize::kShort : GridSize::kFull;
  ExpectAllPass(options);
}

TEST_P(CudaCases, ShortGridInEveryOrder) {
  CheckOptions options;
  options.devices = {"cuda:emulated"};
  options.ops = {GetParam()};
  // With the grid above each order of threads, and each way that asynchronous work completes.
  options.schedules = {"lifo,eager", "reverse,random", "random:1", "random:2,eager"};
  if (kSanitized) options.schedules = {"random:1,random"};
  options.random_cases = 5;
  // ThreadSanitizer takes minutes for all of the ops with most cases. What is left still runs every
  // kernel, which is checked.
  if (kThreadSanitized) {
    if (GetParam() == "attention") options.parts = 12;
    if (GetParam() == "matmul" || GetParam() == "grouped_matmul") options.parts = 4;
  }
  ExpectAllPass(options);
}

INSTANTIATE_TEST_SUITE_P(All, CudaCases, testing::ValuesIn(AllOps()),
                         [](const auto& op) { return op.param; });

}  // namespace
}  // namespace tandem::cases
