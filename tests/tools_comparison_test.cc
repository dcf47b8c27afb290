// `tandem bench --compare`: what follows from times, the JSON, and a small run on the devices that
// every machine has. tests/comparison_report_test.py looks at the page.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/status.h"
#include "tests/cases/escape_xml.h"
#include "tests/cli.h"
#include "tests/scoped_env.h"
#include "tools/comparison.h"
#include "tools/comparison_grid.h"
#include "tools/comparison_plot.h"
#include "tools/comparison_simulated.h"

namespace tandem::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

ComparedTime Took(const std::string& device, double seconds) {
  return {device, "kernel", 5, seconds, seconds * 0.9, seconds * 1.2, ""};
}

// a takes x^2 microseconds, b 100 x, at powers of ten: equal at x = 100.
Comparison Synthetic() {
  Comparison comparison;
  comparison.devices = {{"a", "first", false, {}}, {"b", "second", false, {}}};
  ComparedSeries series;
  series.id = "s/a";
  series.op = "op";
  series.title = "title";
  series.x_name = "x";
  series.operands = "a";
  for (const int64_t x : {1, 10, 1000, 10000}) {
    ComparedPoint point;
    point.x = x;
    point.bytes = 10.0 * static_cast<double>(x);
    const double value = static_cast<double>(x);
    point.times = {Took("a", value * value * 1e-6), Took("b", 100 * value * 1e-6)};
    point.choice = x < 1000 ? "a" : "b";
    point.constants = "b";
    series.points.push_back(point);
  }
  comparison.series = {series};
  return comparison;
}

TEST(Comparison, CrossoverOfPowerLawsIsExact) {
  const Comparison c = Synthetic();
  const std::vector<Crossover> found = Crossovers(c.series[0], "a", "b");
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_NEAR(found[0].x, 100.0, 1e-9);
  EXPECT_EQ(found[0].below, "a");
  EXPECT_EQ(found[0].above, "b");
  const std::vector<Crossover> reverse = Crossovers(c.series[0], "b", "a");
  ASSERT_THAT(reverse, SizeIs(1));
  EXPECT_EQ(reverse[0].below, "a");
}

TEST(Comparison, CrossoversComeAndGo) {
  Comparison c = Synthetic();
  ComparedSeries& series = c.series[0];
  series.points[2].times = {Took("a", 1e-6), Took("b", 2e-6)};  // a is faster here, too
  EXPECT_THAT(Crossovers(series, "a", "b"), SizeIs(1));         // between 1000 and 10000
  series.points[1].times = {Took("a", 2e-6), Took("b", 1e-6)};
  EXPECT_THAT(Crossovers(series, "a", "b"), SizeIs(3));
  // Equal times are no crossing by themselves, and nothing is claimed across a gap.
  series.points[1].times = {Took("a", 1e-6), Took("b", 1e-6)};
  EXPECT_THAT(Crossovers(series, "a", "b"), SizeIs(1));
  series.points[2].times[1].runs = 0;
  EXPECT_THAT(Crossovers(series, "a", "b"), IsEmpty());
}

TEST(Comparison, RegretIsAgainstTheBestOfWhatWasMeasured) {
  const Comparison c = Synthetic();
  const ComparedPoint& point = c.series[0].points[1];  // a: 100 us, b: 1000 us
  EXPECT_NEAR(*Regret(point, "a"), 0.0, 1e-12);
  EXPECT_NEAR(*Regret(point, "b"), 9.0, 1e-9);
  EXPECT_FALSE(Regret(point, "c"));
  ComparedPoint alone = point;
  alone.times.pop_back();
  EXPECT_FALSE(Regret(alone, "a")) << "nothing to compare with";

  const std::vector<RegretSummary> all = Regrets(c);
  ASSERT_THAT(all, SizeIs(4));
  EXPECT_EQ(all[0].strategy, "scheduler");
  EXPECT_EQ(all[0].points, 4);
  EXPECT_NEAR(all[0].worst, 0.0, 1e-12);
  EXPECT_EQ(all[1].strategy, "fixed constants");  // b: 99, 9, 0, 0
  EXPECT_NEAR(all[1].mean, 27.0, 1e-9);
  EXPECT_NEAR(all[1].worst, 99.0, 1e-9);
  EXPECT_EQ(all[1].worst_x, 1);
  EXPECT_EQ(all[2].strategy, "always a");  // 0, 0, 9, 99
  EXPECT_EQ(all[2].worst_x, 10000);
}

TEST(Comparison, JsonKeepsEverything) {
  Comparison c = Synthetic();
  c.kind = ComparisonKind::kSimulated;
  c.quick = true;
  c.machine = {{"processor", "x \"quoted\" <b>"}};
  c.absent = {{"cuda", "no driver"}};
  c.devices[1].emulated = true;
  c.devices[0].limits = {{MachineLimit::Kind::kTransfer, "sends at", 12.5}};
  c.series[0].points[0].times[1].runs = 0;
  c.series[0].points[0].times[1].why = "too long";
  const std::string json = ToJson(c);
  const auto read = ComparisonFromJson(json);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToJson(*read), json);
  EXPECT_EQ(read->series[0].points[0].times[1].why, "too long");
  EXPECT_EQ(read->devices[0].limits[0].kind, MachineLimit::Kind::kTransfer);
}

TEST(Comparison, JsonOfBytesThatAreNoTextIsStillJson) {
  Comparison c = Synthetic();
  c.devices[0].name = "GPU \xff\xfe";
  EXPECT_TRUE(ComparisonFromJson(ToJson(c)).ok());
}

TEST(Comparison, BadJsonIsNamed) {
  const nlohmann::json good = nlohmann::json::parse(ToJson(Synthetic()));
  const auto message = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(pointer)] = value;
    const auto read = ComparisonFromJson(bad.dump());
    EXPECT_FALSE(read.ok()) << pointer;
    return read.ok() ? std::string() : Message(read.status());
  };
  EXPECT_THAT(message("/schema", "other"), HasSubstr("schema"));
  EXPECT_THAT(message("/version", 2), HasSubstr("version"));
  EXPECT_THAT(message("/kind", "guessed"), HasSubstr("kind"));
  EXPECT_THAT(message("/devices/1/id", "a"), HasSubstr("devices[1].id"));
  EXPECT_THAT(message("/series/0/points", 3), HasSubstr("series[0].points"));
  EXPECT_THAT(message("/series/0/points/1/x", 1), HasSubstr("points[1].x"));
  EXPECT_THAT(message("/series/0/points/0/times/0/device", "z"), HasSubstr("times[0].device"));
  EXPECT_THAT(message("/series/0/points/0/times/0/median_s", -1.0), HasSubstr("median_s"));
  EXPECT_THAT(message("/series/0/points/0/times/0/low_s", 1.0), HasSubstr("low_s"));
  EXPECT_THAT(message("/series/0/points/0/bytes", 1e-300), HasSubstr("bytes"));
  EXPECT_THAT(message("/series/0/points/0/bytes", "many"), HasSubstr("bytes"));
  for (const char* text : {"", "[]", "{", "3", "{\"schema\": 1}"}) {
    EXPECT_FALSE(ComparisonFromJson(text).ok()) << text;
  }
}

TEST(Comparison, GridCoversTheLengthsPublished) {
  for (const bool quick : {false, true}) {
    std::set<std::string> ids;
    for (const GridSeries& series : ComparisonGrid(quick)) {
      EXPECT_TRUE(ids.insert(series.id).second) << series.id;
      EXPECT_TRUE(std::is_sorted(series.x.begin(), series.x.end()));
      EXPECT_GE(series.x.size(), 4u) << series.id;
      if (quick) continue;
      if (series.op == OpKind::kAttention && !series.prefill) {
        EXPECT_EQ(series.x.front(), 16);
        EXPECT_EQ(series.x.back(), 65536);
      }
      if (series.op == OpKind::kMatMul) {
        EXPECT_EQ(series.x.front(), 1);
        EXPECT_EQ(series.x.back(), 4096);
      }
    }
    EXPECT_GE(ids.size(), 10u);
  }
}

TEST(Comparison, NumbersForPeople) {
  EXPECT_EQ(FormatSeconds(1.5e-9), "1.50 ns");
  EXPECT_EQ(FormatSeconds(999.9e-9), "1.00 µs");
  EXPECT_EQ(FormatSeconds(0.25), "250 ms");
  EXPECT_EQ(FormatLength(65536), "64k");
  EXPECT_EQ(FormatLength(1000), "1000");
  EXPECT_EQ(FormatRate(400'000, true), "400 TFLOP/s");
  EXPECT_EQ(EscapeXml("<a href=\"x\">&'\n\a"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;&#10;?");
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The emulated device is never shown as a GPU, also where the environment asks for it.
TEST(BenchCompare, AnEmulatedDeviceIsNotCuda) {
  const ScopedEnv emulated("TANDEM_CUDA_EMULATED", "1");
  const std::string path = ::testing::TempDir() + "compare_not_cuda.json";
  const CliResult result = RunCli({"bench", "--compare", "cpu,cuda", "--quick", "--only",
                                   "mask_packed", "--longest", "16", "--json", path});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("without cuda: TANDEM_CUDA_EMULATED"));
  const auto read = ComparisonFromJson(ReadAll(path));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->devices.size(), 1u);
  EXPECT_EQ(read->devices[0].id, "cpu");
  for (const ComparedPoint& point : read->series.at(0).points) EXPECT_EQ(point.choice, "cpu");
}

TEST(BenchCompare, MeasuresTheCpuAlone) {
  const std::string path = ::testing::TempDir() + "compare_cpu.json";
  const CliResult result = RunCli({"bench", "--compare", "cpu,cuda", "--quick", "--only",
                                   "mask_packed", "--longest", "64", "--json", path});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto read = ComparisonFromJson(ReadAll(path));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_GE(read->series.size(), 1u);
  ASSERT_THAT(read->series[0].points, SizeIs(2));
  for (const ComparedPoint& point : read->series[0].points) {
    const ComparedTime* time = TimeOf(point, "cpu");
    ASSERT_NE(time, nullptr);
    EXPECT_GT(time->median, 0.0);
    EXPECT_FALSE(time->kernel.empty());
    EXPECT_GT(point.bytes, 0.0);
  }
  // A GPU is compared or said to be missing.
  EXPECT_EQ(read->devices.size() + read->absent.size(), 2u);
  EXPECT_GE(read->devices[0].limits.size(), 3u);
}

TEST(BenchCompare, EverySeriesOfTheGridRunsOnTheCpu) {
  const std::string path = ::testing::TempDir() + "compare_grid.json";
  const CliResult result =
      RunCli({"bench", "--compare", "cpu", "--quick", "--longest", "16", "--json", path});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto read = ComparisonFromJson(ReadAll(path));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->series.size(), ComparisonGrid(true).size());
  for (const ComparedSeries& series : read->series) {
    for (const ComparedPoint& point : series.points) {
      EXPECT_NE(TimeOf(point, "cpu"), nullptr)
          << series.id << " at " << point.x << ": " << point.times[0].why;
    }
  }
}

// Where there is no GPU: a machine that does not exist, said to be one, with crossovers, and the
// scheduler's choices near the best.
TEST(BenchCompare, SimulatedMachinesAreLabelledAndHaveCrossovers) {
  for (const std::string& machine : SimulatedMachineNames()) {
    SCOPED_TRACE(machine);
    const std::string json = ::testing::TempDir() + "simulated.json";
    const std::string html = ::testing::TempDir() + "simulated.html";
    const CliResult result =
        RunCli({"bench", "--simulate", machine, "--quick", "--json", json, "--html", html});
    ASSERT_EQ(result.code, kExitOk) << result.err;
    EXPECT_THAT(result.out, HasSubstr("Simulated: no hardware was measured."));
    EXPECT_THAT(ReadAll(html), HasSubstr("cuda (simulated)"));
    const auto read = ComparisonFromJson(ReadAll(json));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->kind, ComparisonKind::kSimulated);
    EXPECT_EQ(read->series.size(), 2 * ComparisonGrid(true).size());  // operands of either device
    size_t crossovers = 0;
    for (const ComparedSeries& series : read->series) {
      crossovers += Crossovers(series, "cpu", "cuda").size();
    }
    EXPECT_GE(crossovers, 2u);
    const std::vector<RegretSummary> regrets = Regrets(*read);
    ASSERT_FALSE(regrets.empty());
    EXPECT_EQ(regrets[0].strategy, "scheduler");
    EXPECT_LT(regrets[0].mean, 0.05);
    // The same again.
    const std::string before = ReadAll(json);
    ASSERT_EQ(RunCli({"bench", "--simulate", machine, "--quick", "--json", json}).code, kExitOk);
    EXPECT_EQ(ReadAll(json), before);
  }
}

// The committed report is what its command makes.
TEST(BenchCompare, TheCommittedSimulatedReportIsUpToDate) {
  const std::string json = ::testing::TempDir() + "simulated_laptop.json";
  ASSERT_EQ(RunCli({"bench", "--simulate", "laptop", "--quick", "--json", json}).code, kExitOk);
  const std::string committed = TANDEM_SOURCE_DIR "/docs/results/simulated_laptop.json";
  const auto made = ComparisonFromJson(ReadAll(json)),
             kept = ComparisonFromJson(ReadAll(committed));
  ASSERT_TRUE(made.ok()) << made.status();
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->kind, ComparisonKind::kSimulated);
  // Where another library's logarithm rounds otherwise, times differ in their last digits.
  ASSERT_EQ(made->series.size(), kept->series.size());
  for (size_t i = 0; i < made->series.size(); ++i) {
    EXPECT_EQ(made->series[i].id, kept->series[i].id);
    ASSERT_EQ(made->series[i].points.size(), kept->series[i].points.size());
    for (size_t j = 0; j < made->series[i].points.size(); ++j) {
      const ComparedPoint &a = made->series[i].points[j], &b = kept->series[i].points[j];
      EXPECT_EQ(a.choice, b.choice) << made->series[i].id << " at " << a.x;
      ASSERT_EQ(a.times.size(), b.times.size());
      for (size_t k = 0; k < a.times.size(); ++k) {
        EXPECT_NEAR(a.times[k].median, b.times[k].median, 1e-6 * b.times[k].median);
      }
    }
  }
  EXPECT_EQ(RunCli({"bench", "--from", committed}).code, kExitOk);
}

TEST(BenchCompare, TheEmulatedDeviceIsLabelled) {
  const std::string json = ::testing::TempDir() + "compare_emulated.json";
  const std::string html = ::testing::TempDir() + "compare_emulated.html";
  const CliResult result = RunCli({"bench", "--compare", "cpu,cuda:emulated", "--quick", "--only",
                                   "mask_f32", "--longest", "16", "--json", json, "--html", html});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("no times of a GPU"));
  const std::string page = ReadAll(html);
  EXPECT_THAT(page, HasSubstr("not those of any GPU"));
  EXPECT_THAT(page, HasSubstr("cuda:emulated (emulated on the CPU)"));
  const auto read = ComparisonFromJson(ReadAll(json));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_THAT(read->series, SizeIs(2));  // operands of either device
  for (const ComparedSeries& series : read->series) {
    for (const char* device : {"cpu", "cuda:emulated"}) {
      const ComparedTime* time = TimeOf(series.points[0], device);
      ASSERT_NE(time, nullptr) << series.id << " on " << device << ": "
                               << series.points[0].times.back().why;
    }
    EXPECT_FALSE(series.points[0].choice.empty());
    EXPECT_FALSE(series.points[0].reason.empty());
  }
}

TEST(BenchCompare, BadUsageIsSaid) {
  EXPECT_EQ(RunCli({"bench"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--compare", "tpu"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--compare", "cpu", "--device", "cpu"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--compare", "cpu,cpu"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--compare", "cpu", "--only", "nothing"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--from", "/no/such/file"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--simulate", "mainframe"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"bench", "--simulate", "laptop", "--compare", "cpu"}).code, kExitUsage);
}

}  // namespace
}  // namespace tandem::tools
