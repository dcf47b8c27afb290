// Predicting run times from tables, and the files that tables come from: pure, no device needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/status.h"
#include "dispatch/cost_correction.h"
#include "dispatch/cost_model.h"
#include "dispatch/facts.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr DeviceKind kCpu = DeviceKind::kCpu, kCuda = DeviceKind::kCuda;

OpFacts MatMulFacts(double rows, double work) {
  OpFacts facts;
  facts.op = OpKind::kMatMul;
  facts.m = static_cast<int64_t>(rows);
  facts.n = static_cast<int64_t>(work);
  facts.k = 1;
  return facts;
}

// Ascending tables of random numbers, and copies.
CostProfile RandomProfile(uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> factor(1.0, 6.0);
  CostProfile profile;
  profile.machine = "made up";
  profile.devices[kCpu] = {"a CPU", 1e-7, 5e10};
  profile.devices[kCuda] = {"a GPU", 1e-5, 2e12};
  profile.copies_to[kCuda] = {{{1e-5, 6e9}, {8e-6, 2e10}}};
  profile.copies_to[kCpu] = {{{2e-5, 5e9}, {9e-6, 1e10}}};
  for (const DeviceKind device : kDeviceKinds) {
    CostTable table;
    table.cost_class = {OpKind::kMatMul, DType::kF32, DType::kF32, false};
    table.device = device;
    table.rows = {1, 2, 8, 64};
    table.work = {1e3, 4e3, 6e5, 1e7, 2e8};
    const size_t columns = table.work.size();
    for (size_t i = 0; i < table.rows.size(); ++i) {
      for (size_t j = 0; j < columns; ++j) {
        const double left = j == 0 ? 1e-6 : table.seconds[i * columns + j - 1];
        const double above = i == 0 ? 1e-6 : table.seconds[(i - 1) * columns + j];
        table.seconds.push_back(std::max(left, above) * factor(random));
      }
    }
    profile.tables.push_back(table);
    CostTable add;
    add.cost_class = {.op = OpKind::kAdd};
    add.device = device;
    add.rows = {1};
    add.work = {1e3, 1e5, 1e7};
    add.seconds = {1e-5, 2e-5, 1e-3};
    profile.tables.push_back(add);
  }
  return profile;
}

CostModel RandomModel(uint32_t seed) { return CostModel::FromProfile(RandomProfile(seed)).value(); }

double Seconds(const CostModel& model, double rows, double work) {
  return *model.CallSeconds(MatMulFacts(rows, work), kCpu);
}

TEST(CostModel, IsExactAtEveryPoint) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const CostModel model = RandomModel(seed);
    for (const CostTable& table : model.profile().tables) {
      if (table.cost_class.op != OpKind::kMatMul) continue;
      for (size_t i = 0; i < table.rows.size(); ++i) {
        for (size_t j = 0; j < table.work.size(); ++j) {
          EXPECT_DOUBLE_EQ(
              *model.CallSeconds(MatMulFacts(table.rows[i], table.work[j]), table.device),
              table.seconds[i * table.work.size() + j]);
        }
      }
    }
  }
}

TEST(CostModel, MoreWorkNeverTakesLess) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const CostModel model = RandomModel(seed);
    for (double rows = 1; rows < 300; rows = std::ceil(rows * 1.3)) {
      for (double work = 1; work < 1e10; work = std::ceil(work * 1.3)) {
        const double here = Seconds(model, rows, work);
        EXPECT_GT(here, 0.0);
        EXPECT_LE(here, Seconds(model, rows + 1, work) * (1 + 1e-12)) << rows << " " << work;
        EXPECT_LE(here, Seconds(model, rows, work + 1) * (1 + 1e-12)) << rows << " " << work;
      }
    }
  }
}

TEST(CostModel, HasNoJumpsAtTheEdgesOfItsTables) {
  const CostModel model = RandomModel(3);
  for (const double rows : {1.0, 5.0, 64.0, 1000.0}) {
    for (const double work : {1e3, 4e3, 2e8}) {
      EXPECT_NEAR(Seconds(model, rows, work - 1) / Seconds(model, rows, work + 1), 1.0, 0.01);
    }
  }
}

// launch + work * (a + b * rows) comes out everywhere between the points.
TEST(CostModel, IsExactForOverheadPlusBytesPlusOperations) {
  CostProfile profile = RandomProfile(0);
  CostTable& table = profile.tables[0];
  const auto seconds = [](double rows, double work) {
    return 1e-7 + work * (1e-11 + 3e-12 * rows);
  };
  for (size_t i = 0; i < table.rows.size(); ++i) {
    for (size_t j = 0; j < table.work.size(); ++j) {
      table.seconds[i * table.work.size() + j] = seconds(table.rows[i], table.work[j]);
    }
  }
  const CostModel model = CostModel::FromProfile(profile).value();
  for (const double rows : {1.0, 3.0, 17.0, 64.0}) {
    for (const double work : {10.0, 500.0, 5e3, 7.7e5, 1e8, 2e8}) {
      EXPECT_NEAR(Seconds(model, rows, work) / seconds(rows, work), 1.0, 1e-9);
    }
  }
  EXPECT_NEAR(Seconds(model, 64, 4e9) / seconds(64, 4e9), 1.0, 1e-9);
  // Beyond the last rows the bytes are taken to be many times read, as the operations are done.
  EXPECT_NEAR(Seconds(model, 1024, 1e8) / seconds(1024, 1e8), 1.0, 0.1);
}

TEST(CostModel, ExtrapolatesInProportionWithoutTheLaunch) {
  const CostModel model = RandomModel(1);
  const double launch = 1e-7, last = Seconds(model, 64, 2e8);
  EXPECT_DOUBLE_EQ(Seconds(model, 64, 2e11), launch + 1000 * (last - launch));
  EXPECT_DOUBLE_EQ(Seconds(model, 640, 2e8), launch + 10 * (last - launch));
  EXPECT_DOUBLE_EQ(Seconds(model, 640, 2e9), launch + 100 * (last - launch));
  EXPECT_DOUBLE_EQ(Seconds(model, 1, 0), 1e-7);  // the launch
}

TEST(CostModel, HugeShapesStayFinite) {
  const CostModel model = RandomModel(1);
  OpFacts facts = MatMulFacts(1, 1);
  facts.m = facts.n = facts.k = INT64_MAX;
  EXPECT_TRUE(std::isfinite(*model.CallSeconds(facts, kCpu)));
}

TEST(CostModel, UnmeasuredClassesAreUnknownOrPredictedFromTheirKin) {
  const CostModel model = RandomModel(2);
  OpFacts facts = MatMulFacts(4, 1e6);
  const double seconds = *model.CallSeconds(facts, kCpu);
  facts.packed = true;
  EXPECT_EQ(model.CallSeconds(facts, kCpu), seconds);
  facts.weights = DType::kQ4_0;
  EXPECT_EQ(model.CallSeconds(facts, kCpu), std::nullopt);
  facts = OpFacts();
  facts.op = OpKind::kSiluMul;
  facts.bytes = 100000;
  EXPECT_EQ(model.CallSeconds(facts, kCuda), 2e-5);
}

TEST(CostModel, CopiesTakeLatencyAndBytes) {
  const CostModel model = RandomModel(2);
  EXPECT_DOUBLE_EQ(model.CopySeconds(kCpu, kCuda, 6000), 1e-5 + 1e-6);
  EXPECT_DOUBLE_EQ(model.CopySeconds(kCpu, kCuda, 20000, /*pinned=*/true), 8e-6 + 1e-6);
  EXPECT_DOUBLE_EQ(model.CopySeconds(kCuda, kCpu, 5000), 2e-5 + 1e-6);
  EXPECT_EQ(model.CopySeconds(kCpu, kCpu, 1 << 30), 0.0);
  EXPECT_EQ(model.CopySeconds(kCpu, kCuda, 0), 0.0);
  CostProfile profile = RandomProfile(2);
  profile.copies_to = {};
  EXPECT_EQ(CostModel::FromProfile(profile).value().CopySeconds(kCpu, kCuda, 1),
            std::numeric_limits<double>::infinity());
}

TEST(CostModel, MovingCountsEveryOperandThatIsElsewhere) {
  const CostModel model = RandomModel(2);
  OpFacts facts;
  facts.at[kCpu] = {.read = 6000, .written = 5000, .reads = 3, .writes = 1};
  EXPECT_EQ(model.MoveSeconds(facts, kCpu), 0.0);
  EXPECT_DOUBLE_EQ(model.MoveSeconds(facts, kCuda), 3e-5 + 1e-6 + 2e-5 + 1e-6);
}

TEST(CostModel, RowsAndWorkMultiplyToTheOperations) {
  float memory[1];
  AttentionArgs args;
  args.q = MakeView(memory, DType::kF32, {3, 8, 5, 64});
  args.k = MakeView(memory, DType::kF16, {3, 2, 100, 64});
  args.v = MakeView(memory, DType::kF16, {3, 2, 100, 32});
  args.out = MakeView(memory, DType::kF32, {3, 8, 5, 32});
  const OpFacts facts = FactsOf(args);
  const CostPoint point = CostPointOf(facts);
  EXPECT_EQ(point.rows, 5 * 8 / 2);
  EXPECT_NEAR(2 * point.rows * point.work / facts.flops, 1.0, 1e-12);
  args.causal = Causal::kNone;  // all keys: every element of K and V
  EXPECT_NEAR(CostPointOf(FactsOf(args)).work, 3 * 2 * 100 * (64 + 32), 1e-6);
}

TEST(OpFactsOperands, AreCountedWhereTheyAre) {
  float memory[1];
  MatMulArgs args;
  args.a = MakeView(memory, DType::kF32, {4, 256});
  args.b = MakeView(memory, DType::kQ8_0, {16, 256}, {DeviceKind::kCuda, 0});
  args.out = MakeView(memory, DType::kF32, {4, 16});
  const OpFacts facts = FactsOf(args);
  EXPECT_EQ(facts.at[kCpu].read, 4 * 256 * 4);
  EXPECT_EQ(facts.at[kCpu].written, 4 * 16 * 4);
  EXPECT_EQ(facts.at[kCpu].reads, 1);
  EXPECT_EQ(facts.at[kCpu].writes, 1);
  EXPECT_EQ(facts.at[kCuda].read, 16 * 256 / 32 * 34);
  EXPECT_EQ(facts.at[kCuda].reads, 1);
  EXPECT_EQ(facts.at[kCuda].writes, 0);
}

TEST(CostProfile, SurvivesItsFile) {
  CostProfile profile = RandomProfile(5);
  profile.shared_bytes_per_second = 9e10;
  const auto again = CostProfileFromJson(ToJson(profile));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToJson(*again), ToJson(profile));
  EXPECT_EQ(again->tables[0].seconds, profile.tables[0].seconds);
  EXPECT_EQ(again->copies_to[kCpu][1].bytes_per_second, 1e10);
  EXPECT_EQ(again->shared_bytes_per_second, 9e10);
}

TEST(CostProfile, SaysWhatIsWrong) {
  const auto error = [](auto change) {
    CostProfile profile = RandomProfile(5);
    change(profile);
    return Message(CostModel::FromProfile(profile).status());
  };
  EXPECT_THAT(error([](CostProfile& p) { p.devices[kCpu].name = ""; }), HasSubstr("a CPU"));
  EXPECT_THAT(error([](CostProfile& p) { p.devices[kCuda].name = ""; }), HasSubstr("no cuda"));
  EXPECT_THAT(error([](CostProfile& p) { p.devices[kCpu].launch_seconds = NAN; }),
              HasSubstr("launch_seconds"));
  EXPECT_THAT(error([](CostProfile& p) { p.copies_to[kCuda][0].latency_seconds = -1; }),
              HasSubstr("copies"));
  EXPECT_THAT(error([](CostProfile& p) { p.shared_bytes_per_second = -1; }),
              HasSubstr("shared_bytes_per_second"));
  EXPECT_THAT(error([](CostProfile& p) { p.tables[0].rows[1] = 1; }), HasSubstr("rows"));
  EXPECT_THAT(error([](CostProfile& p) { p.tables[0].work.clear(); }), HasSubstr("work"));
  EXPECT_THAT(error([](CostProfile& p) { p.tables[0].seconds.pop_back(); }),
              HasSubstr("expected 20 numbers, got 19"));
  EXPECT_THAT(error([](CostProfile& p) { p.tables[0].seconds[3] = INFINITY; }),
              HasSubstr("seconds"));
  EXPECT_THAT(error([](CostProfile& p) { p.tables[0].seconds[1] = 1e-9; }),
              HasSubstr("more work takes less time"));
  EXPECT_THAT(error([](CostProfile& p) { p.tables.push_back(p.tables[0]); }),
              HasSubstr("given twice: matmul f32 x f32"));
}

// Whatever is cut off or replaced in a file: an error that says so, or a valid profile.
TEST(CostProfile, DamagedFilesAreFoundOut) {
  const std::string good = ToJson(RandomProfile(5));
  for (size_t length = 0; length + 2 < good.size(); length += 7) {
    EXPECT_FALSE(CostProfileFromJson(good.substr(0, length)).ok()) << length;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string bad = good;
    bad[random() % bad.size()] = static_cast<char>(random() % 256);
    const auto profile = CostProfileFromJson(bad);
    if (profile.ok()) {
      EXPECT_TRUE(CostModel::FromProfile(*profile).ok());
    } else {
      EXPECT_THAT(Message(profile.status()), HasSubstr("cost profile: "));
    }
  }
}

class CostProfileFile : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_ = testing::TempDir() + "/cost_profile_" +
                        testing::UnitTest::GetInstance()->current_test_info()->name();
  std::string path_ = folder_ + "/deep/costs.json";
  std::string note_;
};

TEST_F(CostProfileFile, IsWrittenWholeAndReadBack) {
  const CostProfile profile = RandomProfile(7);
  ASSERT_TRUE(SaveCostProfile(path_, profile).ok());
  ASSERT_TRUE(SaveCostProfile(path_, profile).ok());  // over it
  const auto loaded = LoadCostProfile(path_, "made up", true, &note_);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(ToJson(**loaded), ToJson(profile));
  EXPECT_THAT(note_, HasSubstr("measured, 4 tables"));
  const std::filesystem::directory_iterator files(folder_ + "/deep");
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);  // nothing left beside it
}

TEST_F(CostProfileFile, OfAnotherMachineVersionOrDamagedIsIgnoredOrAnError) {
  ASSERT_TRUE(SaveCostProfile(path_, RandomProfile(7)).ok());
  const auto ignored = LoadCostProfile(path_, "mine", false, &note_);
  ASSERT_TRUE(ignored.ok());
  EXPECT_EQ(*ignored, std::nullopt);
  EXPECT_THAT(note_, HasSubstr("ignored: "));
  EXPECT_THAT(note_, HasSubstr("another machine (made up), this is mine"));
  EXPECT_FALSE(LoadCostProfile(path_, "mine", true, &note_).ok());

  std::ofstream(path_) << R"({"format": "tandem cost profile 0", "machine": "made up"})";
  ASSERT_TRUE(LoadCostProfile(path_, "made up", false, &note_).ok());
  EXPECT_THAT(note_, HasSubstr("format: expected 'tandem cost profile 1'"));
  std::ofstream(path_) << "{";
  ASSERT_TRUE(LoadCostProfile(path_, "made up", false, &note_).ok());
  EXPECT_THAT(note_, HasSubstr("ignored: "));
  ASSERT_TRUE(LoadCostProfile(path_ + "x", "made up", false, &note_).ok());
  EXPECT_THAT(note_, HasSubstr("not measured"));
}

// Measured before the GPU's driver (or the GPU, or the library) changed: said, not just missing. Of
// another CPU, or another number of threads: simply not measured.
TEST_F(CostProfileFile, MeasuredBeforeTheMachineChangedIsSaid) {
  const std::string now = "tandem 2; EPYC, 8 threads; cuda:0 H200, driver 550";
  const auto load = [&] {
    EXPECT_EQ(*LoadCostProfile(path_, now, false, &note_), std::nullopt);
    return note_;
  };
  const auto keep = [&](const std::string& file, const std::string& machine) {
    CostProfile profile = RandomProfile(7);
    profile.machine = machine;
    ASSERT_TRUE(SaveCostProfile(folder_ + "/deep/" + file, profile).ok());
  };
  EXPECT_THAT(load(), HasSubstr("not measured"));
  keep("costs-1.json", "tandem 2; EPYC, 4 threads; cuda:0 H200, driver 550");
  keep("costs-2.json", "tandem 2; EPYC, 8 threads");
  keep("kernels-3.json", "tandem 2; EPYC, 8 threads; cuda:0 H200, driver 535");
  std::ofstream(folder_ + "/deep/costs-4.json") << "{";
  EXPECT_THAT(load(), HasSubstr("not measured"));
  keep("costs-5.json", "tandem 2; EPYC, 8 threads; cuda:0 H200, driver 535");
  EXPECT_THAT(load(),
              testing::StartsWith("ignored: it was measured with tandem 2; EPYC, 8 threads; "
                                  "cuda:0 H200, driver 535, this is "));
}

TEST_F(CostProfileFile, BadProfilesAreNotWritten) {
  CostProfile profile = RandomProfile(7);
  profile.tables[0].rows.clear();
  EXPECT_FALSE(SaveCostProfile(path_, profile).ok());
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST(CostCorrection, FollowsAndIsBounded) {
  CostCorrection correction(2);
  const int slot = CostCorrection::SlotOf(1, true);
  EXPECT_EQ(correction.Factor(slot), 1.0);
  correction.Observe(slot, 1e-3, 1.0);  // one odd call
  EXPECT_EQ(correction.Factor(slot), CostCorrection::kMaxStep);
  for (int i = 0; i < 100; ++i) correction.Observe(slot, 1e-3, 3e-3);
  EXPECT_NEAR(correction.Factor(slot), 3.0, 1e-6);
  for (int i = 0; i < 100; ++i) correction.Observe(slot, 1e-3, 1e3);
  EXPECT_EQ(correction.Factor(slot), CostCorrection::kMaxCorrection);
  for (int i = 0; i < 100; ++i) correction.Observe(slot, 1e-3, 1e-9);
  EXPECT_EQ(correction.Factor(slot), 1.0 / CostCorrection::kMaxCorrection);
  for (const double bad : {0.0, -1.0, double{NAN}, double{INFINITY}}) {
    correction.Observe(slot, 1e-3, bad);
    correction.Observe(slot, bad, 1e-3);
  }
  EXPECT_EQ(correction.Factor(slot), 1.0 / CostCorrection::kMaxCorrection);
  correction.Observe(-1, 1.0, 1.0);
  correction.Observe(99, 1.0, 1.0);
  EXPECT_EQ(correction.Factor(99), 1.0);
  EXPECT_EQ(correction.Factor(CostCorrection::SlotOf(1, false)), 1.0);  // no other one moved
  correction.Reset();
  EXPECT_EQ(correction.Factor(slot), 1.0);
}

}  // namespace
}  // namespace tandem
