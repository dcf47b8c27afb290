// Kernels of different devices compared with each other: distances, the bound, the report, and that
// a kernel that is wrong on one device shows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/status.h"
#include "dispatch/context.h"
#include "dispatch/registry.h"
#include "nlohmann/json.hpp"
#include "tests/cases/all_cases.h"
#include "tests/cases/check.h"
#include "tests/cases/device_pairs.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");

TEST(UlpDistance, CountsTheValuesBetween) {
  EXPECT_EQ(UlpDistance(DType::kF32, 1.0, 1.0), 0u);
  EXPECT_EQ(UlpDistance(DType::kF32, 1.0, 1.0 + 0x1p-23), 1u);
  EXPECT_EQ(UlpDistance(DType::kF32, 1.0, 1.0 - 0x1p-24), 1u);
  EXPECT_EQ(UlpDistance(DType::kF16, 2.0, 1.0), 1024u);
  EXPECT_EQ(UlpDistance(DType::kBF16, 1.0, 2.0), 128u);
  EXPECT_EQ(UlpDistance(DType::kF16, 0x1p-24, -0x1p-24), 2u);  // subnormals on both sides of 0
  EXPECT_EQ(UlpDistance(DType::kF32, 0.0, -0.0), 0u);
  EXPECT_EQ(UlpDistance(DType::kF16, 65504.0, kInf), 1u);
  EXPECT_EQ(UlpDistance(DType::kF32, kNan, kNan), 0u);
  EXPECT_GT(UlpDistance(DType::kF32, kNan, 1.0), UlpDistance(DType::kF32, -kInf, kInf));
  EXPECT_EQ(UlpDistance(DType::kI32, -3.0, 4.0), 7u);
}

TEST(UlpCounts, QuantilesAreExactWhenSmallAndAnEighthOffAtMost) {
  UlpCounts counts;
  EXPECT_EQ(counts.Quantile(0.99), 0u);
  for (uint64_t i = 0; i < 99; ++i) counts.Add(i % 3);
  counts.Add(1'000'000);
  EXPECT_EQ(counts.count(), 100);
  EXPECT_EQ(counts.max(), 1'000'000u);
  EXPECT_EQ(counts.Quantile(0.99), 2u);
  EXPECT_EQ(counts.Quantile(0.3), 0u);
  EXPECT_EQ(counts.Quantile(1.0), 1'000'000u);
  for (const uint64_t distance : {uint64_t{15}, uint64_t{16}, uint64_t{17}, uint64_t{31},
                                  uint64_t{32}, uint64_t{12345}, uint64_t{1} << 32}) {
    UlpCounts two;
    two.Add(distance);
    two.Add(uint64_t{1} << 40);
    EXPECT_GE(two.Quantile(0.5), distance);
    EXPECT_LE(two.Quantile(0.5), distance + distance / 8);
  }
  UlpCounts merged;
  merged.Merge(counts);
  merged.Merge(counts);
  EXPECT_EQ(merged.count(), 200);
  EXPECT_EQ(merged.Quantile(0.99), 2u);
}

// An f32 output of these values.
Output Floats(const std::vector<float>& values) {
  Output output{.dtype = DType::kF32, .shape = {1, static_cast<int64_t>(values.size())}};
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  output.bytes.assign(bytes, bytes + values.size() * sizeof(float));
  return output;
}

TEST(CompareOutputs, HoldsBothToTheSumOfTheirBounds) {
  Expectation expected{.operand = "out", .expected = {3.0, 4.0}, .allowed = {0.375, 0.5}};
  const auto compare = [&](const std::vector<float>& a, const std::vector<float>& b) {
    return CompareOutputs({expected}, {Floats(a)}, {Floats(b)});
  };
  Difference same = compare({3, 4}, {3, 4});
  EXPECT_EQ(same.problem, "");
  EXPECT_EQ(same.worst_ratio, 0.0);
  EXPECT_EQ(same.ulps.max(), 0u);
  // One off by its bound to one side, the other to the other: 2 * 0.625 of L2, and no more.
  Difference most = compare({3.375f, 4.5f}, {2.625f, 3.5f});
  EXPECT_EQ(most.problem, "") << most.worst_ratio;
  EXPECT_NEAR(most.worst_ratio, 1.0, 1e-6);
  EXPECT_NEAR(most.relative_l2, 0.25, 1e-6);
  EXPECT_NEAR(most.max_abs, 1.0, 1e-6);
  Difference more = compare({3.375f, 4.5f}, {2.625f, 3.25f});
  EXPECT_THAT(more.problem, HasSubstr("out: apart by"));
  EXPECT_THAT(more.problem, HasSubstr("element 1 is 4.5 and 3.25"));
  EXPECT_GT(more.worst_ratio, 1.0);
  expected.max_relative_l2 = 0.01;  // the tighter bound holds: 0.05 of L2 each
  EXPECT_THAT(compare({3.375f, 4.5f}, {2.625f, 3.5f}).problem, HasSubstr("apart"));
  expected.allowed = {0.0};
  EXPECT_THAT(compare({3, 4}, {3, 4.0000005f}).problem, HasSubstr("apart"));
}

TEST(CompareOutputs, NumbersThatAreNotFiniteMustBeTheSame) {
  Expectation expected{.operand = "y", .expected = {kNan, -kInf, 0.0}, .allowed = {0.5}};
  const auto problem = [&](const std::vector<float>& a, const std::vector<float>& b) {
    return CompareOutputs({expected}, {Floats(a)}, {Floats(b)}).problem;
  };
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  EXPECT_EQ(problem({nan, -inf, 0}, {nan, -inf, 0}), "");
  EXPECT_EQ(problem({nan, -inf, 0.25f}, {nan, -inf, -0.25f}), "");  // around a reference of 0
  EXPECT_NE(problem({nan, -inf, 1.5f}, {nan, -inf, 0}), "");
  EXPECT_THAT(problem({0, -inf, 0}, {nan, -inf, 0}), HasSubstr("element 0 is 0 and nan"));
  EXPECT_NE(problem({nan, inf, 0}, {nan, -inf, 0}), "");
  EXPECT_NE(problem({nan, -inf, inf}, {nan, -inf, 0}), "");
  EXPECT_EQ(problem({nan, -inf, inf}, {nan, -inf, inf}), "") << "the reference finds both wrong";
}

TEST(CompareOutputs, WhatMustBeCertainBytesMustBeTheSame) {
  Output ints{.dtype = DType::kI32, .shape = {2}, .bytes = std::vector<std::byte>(8)};
  const Expectation expected{.operand = "ids", .bytes = ints.bytes};
  EXPECT_EQ(CompareOutputs({expected}, {ints}, {ints}).problem, "");
  Output other = ints;
  other.bytes[4] = std::byte{5};
  const Difference difference = CompareOutputs({expected}, {ints}, {other});
  EXPECT_THAT(difference.problem, HasSubstr("ids: element 1 is 0 and 5"));
  EXPECT_EQ(difference.ulps.max(), 5u);
  EXPECT_EQ(CompareOutputs({expected}, {ints}, {}).problem, "ids: there is no output");
  Output blocks{.dtype = DType::kQ8_0, .shape = {1, 32}, .bytes = std::vector<std::byte>(34)};
  Output changed = blocks;  // the scale is 0: the same numbers in other bytes
  changed.bytes[7] = std::byte{1};
  EXPECT_EQ(CompareOutputs({expected}, {blocks}, {blocks}).problem, "");
  EXPECT_THAT(CompareOutputs({expected}, {blocks}, {changed}).problem, HasSubstr("blocks differ"));
}

// Softmax of the emulated device with another scale than it was given, by one part in `kPart`.
template <int kPart>
absl::Status WrongScale(const KernelContext& context, const SoftmaxArgs& args) {
  SoftmaxArgs wrong = args;
  wrong.scale = args.scale + args.scale / kPart;
  return KernelsOf<SoftmaxArgs>(DeviceKind::kCuda).back().run(context, wrong);
}

class PlantedOnOneDevice : public testing::Test {
 protected:
  // The short grid on the CPU's reference kernel and on the device's last, which takes it all, with
  // another `run`.
  CheckReport Compare(absl::Status (*run)(const KernelContext&, const SoftmaxArgs&)) {
    ContextOptions options;
    options.threads = 1;
    options.cuda_emulated = true;
    const auto context = std::move(Context::Create(options)).value();
    Kernel<SoftmaxArgs> planted = KernelsOf<SoftmaxArgs>(DeviceKind::kCuda).back();
    planted.name = "planted";
    if (run != nullptr) planted.run = run;
    const Kernel<SoftmaxArgs> reference = KernelsOf<SoftmaxArgs>(DeviceKind::kCpu).back();
    PairRows pairs;
    CheckReport report;
    for (const SoftmaxCase& c : SoftmaxCase::Grid(GridSize::kShort)) {
      const auto prepared = Prepare(c);
      EXPECT_TRUE(prepared.ok()) << prepared.status();
      std::vector<DeviceRun> runs;
      for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
        ContextDevice& device = *context->device(kind);
        const Target target = {.backend = device.backend.get(),
                               .stream = device.stream.get(),
                               .pack = nullptr,
                               .keep_outputs = true};
        const auto& kernel = kind == DeviceKind::kCpu ? reference : planted;
        runs.push_back({Name(device.backend->device()), std::string(kernel.name),
                        RunPrepared(*prepared, kernel, target)});
      }
      pairs.Add("softmax", "native", c.DTypeLabel(), CaseText(c), prepared->expectations, runs);
    }
    report.pairs = pairs.Take();
    return report;
  }
};

TEST_F(PlantedOnOneDevice, ShowsInTableJsonAndJunit) {
  const CheckReport good = Compare(nullptr);
  EXPECT_GT(good.pairs_passed(), 20);
  EXPECT_EQ(good.pairs_failed(), 0) << CheckTable(good);
  EXPECT_THAT(CheckTable(good), Not(HasSubstr("DIFFER")));
  EXPECT_GT(Compare(WrongScale<10'000>).pairs_failed(), 0);

  const CheckReport bad = Compare(WrongScale<100>);
  EXPECT_GT(bad.pairs_failed(), 5);
  EXPECT_GT(bad.pairs_passed(), 0) << "rows of one element do not see the scale";
  const std::string table = CheckTable(bad);
  EXPECT_THAT(table, HasSubstr("DIFFER softmax cpu reference and cuda:emulated planted (f32)"));
  EXPECT_THAT(table, HasSubstr("reproduce: tandem check --devices cpu,cuda:emulated --kernel "
                               "reference --kernel planted --case 'softmax"));
  const auto json = nlohmann::json::parse(CheckJson(bad), nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["pairs_failed"], bad.pairs_failed());
  EXPECT_GT(json["pairs"][0]["worst_difference_over_bound"], 1.0);
  EXPECT_GT(json["pairs"][0]["ulp_p99"], 100);
  EXPECT_GE(json["pairs"][0]["ulp_max"], json["pairs"][0]["ulp_p99"]);
}

// Results that never come are no agreement.
TEST_F(PlantedOnOneDevice, AFailedRunIsAFailedComparison) {
  const CheckReport report = Compare(
      [](const KernelContext&, const SoftmaxArgs&) { return absl::InternalError("planted"); });
  EXPECT_EQ(report.pairs_passed(), 0);
  EXPECT_GT(report.pairs_failed(), 0);
  EXPECT_THAT(CheckTable(report), HasSubstr("cuda:emulated planted left no result"));
}

TEST_F(PlantedOnOneDevice, JunitSkipsWithTheReason) {
  CheckReport report;
  PairRow row;
  row.op = "cast";
  row.isa = "native";
  row.dtype = "f32 -> q6_k";
  row.device_a = "cpu";
  row.kernel_a = row.kernel_b = "reference";
  row.device_b = "cuda:0";
  row.cases = row.unsupported = 3;
  row.first_unsupported = "cuda:0 reference: no <blocks>";
  report.pairs = {row};
  report.rows.emplace_back().op = "cast";
  EXPECT_THAT(CheckJunit(report),
              HasSubstr("classname=\"cast.cpu and cuda:0\" name=\"reference and "
                        "reference f32 -&gt; q6_k native\">\n"
                        "      <skipped message=\"cuda:0 reference: no "
                        "&lt;blocks&gt;\"/>"));
  EXPECT_THAT(CheckTable(report), HasSubstr("not compared: cuda:0 reference: no <blocks>"));
}

std::vector<std::string> AllOps() {
  std::vector<std::string> ops;
  ForEachCaseType([&]<typename Case>() { ops.push_back(OpNameOf<Case>()); });
  return ops;
}

class DevicesAgree : public testing::TestWithParam<std::string> {};

TEST_P(DevicesAgree, OnTheShortGrid) {
  CheckOptions options;
  options.ops = {GetParam()};
  options.devices = {"cpu", "cuda:emulated"};
  // Sanitizers watch the same runs elsewhere; here a few.
  if (kSanitized) options.parts = 8;
  const auto report = RunCheck(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->pairs_passed(), 0);
  EXPECT_EQ(report->failed() + report->pairs_failed(), 0) << CheckTable(*report, true);
  for (const PairRow& pair : report->pairs) {
    EXPECT_EQ(pair.device_a, "cpu");
    EXPECT_EQ(pair.device_b, "cuda:emulated");
    EXPECT_EQ(pair.cases, pair.passed + pair.failed + pair.unsupported);
    EXPECT_EQ(pair.unsupported > 0, !pair.first_unsupported.empty());
    EXPECT_LE(pair.ulps.Quantile(0.99), pair.ulps.max());
  }
  // Alone, a device is compared with nobody.
  options.devices = {"cpu"};
  const auto alone = RunCheck(options);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_THAT(alone->pairs, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Ops, DevicesAgree, testing::ValuesIn(AllOps()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace tandem::cases
