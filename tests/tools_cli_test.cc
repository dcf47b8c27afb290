// The command line as a user meets it: output, JSON, errors and exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "tests/cli.h"
#include "tests/scoped_env.h"
#include "tools/command.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

using ::testing::HasSubstr;

TEST(Cli, DevicesDescribesTheMachineAsJson) {
  const CliResult result = RunCli({"devices", "--json", "--no-measure"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_GE(json["cpu"]["cores"].get<int>(), 1);
  EXPECT_FALSE(json["cpu"]["isa"].get<std::string>().empty());
  EXPECT_FALSE(json["cuda"]["message"].get<std::string>().empty());
}

TEST(Cli, DevicesMeasuresRatesAboveZero) {
  const CliResult result = RunCli({"devices", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  ASSERT_GE(json["cpu"]["rates"].size(), 3u);
  for (const auto& rate : json["cpu"]["rates"]) {
    EXPECT_GT(rate["one_thread"].get<double>(), 0.0) << rate.dump();
    EXPECT_GT(rate["all_threads"].get<double>(), 0.0) << rate.dump();
  }
}

TEST(Cli, BenchDeviceSaysThatTheEmulatedClockIsVirtual) {
  const CliResult result = RunCli(
      {"bench-device", "--device", "cuda:emulated", "--bytes", "4096", "--repeats", "1", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_THAT(json["device"].get<std::string>(), ::testing::StartsWith("cuda:emulated"));
  EXPECT_EQ(json["virtual_clock"], true);
  EXPECT_GE(json["rows"].size(), 8u);
  EXPECT_THAT(json["matmul_library"].get<std::string>(), ::testing::HasSubstr("stand-in"));
  std::set<std::string> by;
  for (const auto& row : json["rows"]) {
    if (row.contains("matmul")) by.insert(row["matmul"]["by"].get<std::string>());
  }
  EXPECT_THAT(by, ::testing::IsSupersetOf({"library", "cublaslt", "generic", "gemv", "gemv_vector",
                                           "int8_dot", "int8_mma", "expanded"}));
  EXPECT_EQ(RunCli({"bench-device", "--device", "cpu"}).code, kExitUsage);
}

TEST(Cli, ExplainNamesDeviceKernelAndReason) {
  const WithoutGpu alone;
  const CliResult cpu = RunCli({"explain", "--op", "attention", "--json"});
  ASSERT_EQ(cpu.code, kExitOk) << cpu.err;
  auto json = nlohmann::json::parse(cpu.out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_FALSE(json["kernel"].get<std::string>().empty());
  const CliResult cuda =
      RunCli({"explain", "--op", "attention", "--kv-len", "63", "--assume-cuda", "--json"});
  json = nlohmann::json::parse(cuda.out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["reason"], "cache length 63 < attention_min_kv_len 64");
}

TEST(Cli, ExplainObeysAForcedKernel) {
  const CliResult result =
      RunCli({"explain", "--op", "matmul", "--kernel", "matmul=reference", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  EXPECT_EQ(json["kernel"], "reference");
}

TEST(Cli, CheckReportsAsTableJsonAndJunit) {
  const std::string junit = ::testing::TempDir() + "/tandem_check.xml";
  const CliResult result =
      RunCli({"check", "--short", "--op", "attention", "--json", "--junit", junit});
  ASSERT_EQ(result.code, kExitOk) << result.err << result.out;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_GT(json["passed"].get<int>(), 0);
  EXPECT_EQ(json["failed"].get<int>(), 0);
  std::ifstream file(junit);
  std::stringstream xml;
  xml << file.rdbuf();
  EXPECT_THAT(xml.str(), HasSubstr("<testsuite"));
  const CliResult table = RunCli({"check", "--short", "--op", "attention"});
  EXPECT_THAT(table.out, HasSubstr("reference"));
}

TEST(Cli, CheckComparesDevicesAndTheDocumentKnowsEveryField) {
  const CliResult result =
      RunCli({"check", "--short", "--op", "cast", "--devices", "cpu,cuda:emulated", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err << result.out;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_GT(json["pairs_passed"].get<int>(), 0);
  std::ifstream file(TANDEM_SOURCE_DIR "/docs/check_report.md");
  std::stringstream text;
  text << file.rdbuf();
  for (const auto& object : {json, json["rows"][0], json["pairs"][0]}) {
    for (const auto& [key, value] : object.items()) {
      EXPECT_THAT(text.str(), HasSubstr("`" + key + "`"));
    }
  }
  // What the device cannot do is a result, with its reason.
  bool skipped = false;
  for (const auto& pair : json["pairs"]) {
    skipped = skipped || (pair["passed"] == 0 && pair["failed"] == 0 &&
                          !pair["first_unsupported"].get<std::string>().empty());
  }
  EXPECT_TRUE(skipped);
  const CliResult table =
      RunCli({"check", "--short", "--op", "cast", "--devices", "cpu,cuda:emulated"});
  EXPECT_THAT(table.out, HasSubstr("comparisons between devices passed, 0 failed"));
}

TEST(Cli, CheckRunsOneCaseByItsText) {
  const CliResult result = RunCli(
      {"check", "--kernel", "reference", "--case", "attention q_heads=4 kv_heads=2 kv_len=9"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  const CliResult bad = RunCli({"check", "--case", "attention q_haeds=4"});
  EXPECT_EQ(bad.code, kExitUsage);
  EXPECT_THAT(bad.err, HasSubstr("q_haeds"));
}

TEST(Cli, CheckPrimitivesRecordsAndComparesWithARecording) {
  const std::string path = ::testing::TempDir() + "/tandem_primitives.cbor";
  const std::vector<std::string> check = {"check-primitives", "--filter", "ldmatrix"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), check.begin(), check.end());
    return RunCli(more);
  };
  const CliResult recorded = with({"--record", path, "--json"});
  ASSERT_EQ(recorded.code, kExitOk) << recorded.out << recorded.err;
  const auto json = nlohmann::json::parse(recorded.out, nullptr, false);
  EXPECT_EQ(json["passed"], 6);
  EXPECT_EQ(with({"--golden", path, "--schedule", "random:2,random"}).code, kExitOk);
  // A GPU that answered something else.
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(0, std::ios::end);
  file.seekp(static_cast<std::streamoff>(file.tellg()) / 2);
  file.put('!');
  file.close();
  const CliResult other = with({"--golden", path});
  EXPECT_EQ(other.code, kExitFailed);
  EXPECT_THAT(other.out, HasSubstr("unlike the recording"));
  EXPECT_THAT(with({"--golden", "/no/such/file"}).err, HasSubstr("--golden"));
  EXPECT_EQ(with({"--device", "cpu"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"check-primitives", "--filter", "nonsense"}).code, kExitUsage);
}

TEST(Cli, BadUsageExitsWith2AndSaysWhy) {
  EXPECT_EQ(RunCli({}).code, kExitUsage);
  EXPECT_EQ(RunCli({"nonsense"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"explain", "--op", "dance"}).code, kExitUsage);
  const CliResult dtype = RunCli({"explain", "--op", "matmul", "--weights", "q9"});
  EXPECT_EQ(dtype.code, kExitUsage);
  EXPECT_THAT(dtype.err, HasSubstr("unknown dtype 'q9'"));
  const CliResult heads =
      RunCli({"explain", "--op", "attention", "--q-heads", "7", "--kv-heads", "2"});
  EXPECT_EQ(heads.code, kExitUsage);
  EXPECT_THAT(heads.err, HasSubstr("expected a multiple of the 2 key/value heads"));
  const CliResult kernel = RunCli({"explain", "--op", "matmul", "--kernel", "matmul"});
  EXPECT_EQ(kernel.code, kExitUsage);
  EXPECT_THAT(kernel.err, HasSubstr("expected op=name"));
}

TEST(Cli, HelpIsForPeople) {
  const CliResult result = RunCli({"--help"});
  EXPECT_EQ(result.code, kExitOk);
  EXPECT_THAT(result.out, HasSubstr("devices"));
  EXPECT_THAT(result.out, HasSubstr("Exit codes"));
}

TEST(Terminal, TablesAlignNumbersRightAndWordsLeft) {
  Table table({"name", "count"});
  table.Row({"a", "5"});
  table.Row({"bbb", "12345678"});
  std::ostringstream out;
  table.Print(out, /*color=*/false);
  EXPECT_EQ(out.str(),
            "name     count\n"
            "a            5\n"
            "bbb   12345678\n");
}

TEST(Terminal, BytesAreReadable) {
  EXPECT_EQ(HumanBytes(512), "512 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(3.0 * (1 << 30)), "3 GiB");
}

}  // namespace
}  // namespace tandem::tools
