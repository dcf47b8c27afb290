// Every CUDA kernel over the shared cases, on the emulated device, in several orders of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  for (const CheckRow& row : report->rows) {
    EXPECT_EQ(row.device, "cuda:emulated");
    EXPECT_EQ(row.failed, 0) << row.op << "=" << row.kernel << " " << row.dtype << ": "
                             << row.first_failure;
  }
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
  options.schedules = {"lifo", "reverse", "random:1", "random:2"};
  if (kSanitized) options.schedules = {"random:1"};
  options.random_cases = 5;
  ExpectAllPass(options);
}

INSTANTIATE_TEST_SUITE_P(All, CudaCases, testing::ValuesIn(AllOps()),
                         [](const auto& op) { return op.param; });

}  // namespace
}  // namespace tandem::cases
