// tandem generate, logits and bench-model on the demo model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/cli.h"
#include "tests/scoped_env.h"

namespace tandem::tools {
namespace {

using ::testing::HasSubstr;

const std::string kModel = std::string(TANDEM_SOURCE_DIR) + "/models/demo.gguf";

std::string TempPath(const std::string& name) { return ::testing::TempDir() + "/" + name; }

TEST(CliGenerate, AddsTwoNumbers) {
  const CliResult result = RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "23+45=68\n");
  EXPECT_THAT(result.err, HasSubstr("tokens/s"));
  EXPECT_THAT(result.err, HasSubstr("end_token"));
}

TEST(CliGenerate, RecallsAValue) {
  const CliResult result = RunCli(
      {"generate", "-m", kModel, "-p", "BA=KE\nQC=AD\nZL=MB\nQC?", "-n", "2", "--no-prompt"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "AD\n");
}

TEST(CliGenerate, JsonExplainSaysWhatRanWhereAndWhy) {
  const WithoutGpu alone;
  const CliResult result =
      RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4", "--json", "--explain"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_EQ(json["text"], "68");
  EXPECT_EQ(json["stop"], "end_token");
  EXPECT_GT(json["generation_tokens_per_second"].get<double>(), 0.0);
  std::set<std::string> ops;
  for (const auto& row : json["ops"]) {
    ops.insert(row["op"].get<std::string>());
    EXPECT_EQ(row["device"], "cpu");
    EXPECT_FALSE(row["kernel"].get<std::string>().empty());
    EXPECT_EQ(row["reason"], "the CPU is the only device present");
  }
  for (const char* op :
       {"embedding", "rms_norm", "matmul", "grouped_matmul", "kv_append", "attention"}) {
    EXPECT_TRUE(ops.count(op)) << op;
  }
}

TEST(CliGenerate, ForcedKernelsAreTheOnesThatRan) {
  const CliResult result =
      RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4", "--json", "--explain",
              "--kernel", "attention=reference", "--kernel", "matmul=reference"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  EXPECT_EQ(json["text"], "68");
  for (const auto& row : json["ops"]) {
    if (row["op"] == "attention" || row["op"] == "matmul") {
      EXPECT_EQ(row["kernel"], "reference");
    }
  }
}

TEST(CliGenerate, TheTraceIsAChromeTrace) {
  const std::string path = TempPath("tandem_trace.json");
  const CliResult result =
      RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4", "--trace", path});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_GT(json["traceEvents"].size(), 50u);
}

TEST(CliGenerate, ASeedRepeatsASampledText) {
  const std::vector<std::string> arguments = {
      "generate",      "-m",  kModel,    "-p", "Once there was", "-n", "20",
      "--temperature", "0.9", "--top-k", "40", "--seed",         "7"};
  const CliResult first = RunCli(arguments), second = RunCli(arguments);
  ASSERT_EQ(first.code, kExitOk) << first.err;
  EXPECT_EQ(first.out, second.out);
}

TEST(CliGenerate, ErrorsNameWhatIsWrong) {
  const WithoutGpu alone;
  const CliResult missing = RunCli({"generate", "-m", "no/such.gguf", "-p", "x"});
  EXPECT_EQ(missing.code, kExitUsage);
  EXPECT_THAT(missing.err, HasSubstr("no/such.gguf"));
  const std::string junk = TempPath("junk.gguf");
  std::ofstream(junk) << "GGUF but not really";
  const CliResult broken = RunCli({"generate", "-m", junk, "-p", "x"});
  EXPECT_NE(broken.code, kExitOk);
  EXPECT_THAT(broken.err, HasSubstr("junk.gguf"));
  const CliResult trace =
      RunCli({"generate", "-m", kModel, "-p", "1+1=", "--trace", "/no/such/folder/trace.json"});
  EXPECT_EQ(trace.code, kExitUsage);
  EXPECT_THAT(trace.err, HasSubstr("--trace"));
  EXPECT_EQ(RunCli({"generate", "-p", "x"}).code, kExitUsage);
  const CliResult device = RunCli({"generate", "-m", kModel, "-p", "x", "--device", "cuda"});
  EXPECT_NE(device.code, kExitOk);
  EXPECT_THAT(device.err, HasSubstr("cuda"));
}

TEST(CliGenerate, HybridRunsLayersOnBothDevicesAndSaysWhich) {
  const CliResult result =
      RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4", "--json", "--explain",
              "--device", "hybrid:emulated", "--gpu-layers", "2", "-c", "64", "--ubatch", "16"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result.out;
  EXPECT_EQ(json["text"], "68");
  EXPECT_EQ(json["placement_reason"], "asked for");
  EXPECT_THAT(json["placement"].get<std::string>(), HasSubstr("the output matrix on cuda"));
  EXPECT_THAT(json["steps"].get<std::string>(), HasSubstr("on two devices"));
  std::map<std::string, std::set<std::string>> devices;
  for (const auto& row : json["ops"]) {
    devices[row["op"].get<std::string>()].insert(row["device"].get<std::string>());
    EXPECT_THAT(row["reason"].get<std::string>(), HasSubstr("placed on"));
  }
  for (const char* op : {"rms_norm", "matmul", "kv_append", "attention"}) {
    EXPECT_EQ(devices[op], (std::set<std::string>{"cpu", "cuda:emulated"})) << op;
  }
}

TEST(CliGenerate, HybridKeepsToTheMemoryItIsGiven) {
  const auto run = [](const std::string& limit, const std::string& layers) {
    std::vector<std::string> arguments = {"generate",
                                          "-m",
                                          kModel,
                                          "-p",
                                          "23+45=",
                                          "-n",
                                          "4",
                                          "--json",
                                          "--device",
                                          "hybrid:emulated",
                                          "--gpu-memory-limit",
                                          limit,
                                          "-c",
                                          "64",
                                          "--ubatch",
                                          "16"};
    if (!layers.empty()) arguments.insert(arguments.end(), {"--gpu-layers", layers});
    return RunCli(arguments);
  };
  const CliResult some = run("2M", "");
  ASSERT_EQ(some.code, kExitOk) << some.err;
  const auto json = nlohmann::json::parse(some.out, nullptr, false);
  EXPECT_EQ(json["text"], "68");
  EXPECT_THAT(json["placement_reason"].get<std::string>(), HasSubstr("2.0 MiB"));
  EXPECT_THAT(json["placement"].get<std::string>(), HasSubstr("the rest on cpu"));
  const CliResult refused = run("100K", "1");
  EXPECT_EQ(refused.code, kExitFailed);
  EXPECT_THAT(refused.err, HasSubstr("gpu_layers: 1 layers take"));
  EXPECT_EQ(run("many", "").code, kExitUsage);
  const CliResult alone =
      RunCli({"generate", "-m", kModel, "-p", "1", "--gpu-layers", "1", "-n", "1"});
  EXPECT_EQ(alone.code, kExitUsage);
  EXPECT_THAT(alone.err, HasSubstr("--device hybrid"));
}

TEST(CliLogits, WritesOneRowPerToken) {
  const std::string path = TempPath("tandem_logits.bin");
  const CliResult result =
      RunCli({"logits", "-m", kModel, "--tokens", "1,5,9", "--out", path, "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  const auto vocabulary = json["vocabulary"].get<uintmax_t>();
  EXPECT_EQ(std::filesystem::file_size(path), 3 * 4 * vocabulary);
  EXPECT_EQ(json["top"].size(), 5u);
  EXPECT_EQ(RunCli({"logits", "-m", kModel, "--tokens", "1,x"}).code, kExitUsage);
  EXPECT_EQ(RunCli({"logits", "-m", kModel, "--tokens", "999999"}).code, kExitUsage);
}

TEST(CliBenchModel, ReportsRatesAndBytes) {
  const CliResult result = RunCli({"bench-model", "-m", kModel, "--prompt-tokens", "8",
                                   "--gen-tokens", "2", "-r", "1", "--json"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_GT(json["prompt_tokens_per_second"].get<double>(), 0.0);
  EXPECT_GT(json["generation_tokens_per_second"].get<double>(), 0.0);
  EXPECT_GT(json["read_bandwidth_gbps"].get<double>(), 0.0);
  EXPECT_GT(json["model_bytes"].get<int64_t>(), 1000000);
  EXPECT_EQ(json["kv_bytes_per_token"].get<int64_t>(), 4 * 2 * 2 * 64 * 2);
}

// TANDEM_CUDA_EMULATED_FAULT for the life of the object.
class FaultVariable {
 public:
  explicit FaultVariable(const char* fault) { setenv(kName, fault, 1); }
  ~FaultVariable() { unsetenv(kName); }

 private:
  static constexpr const char* kName = "TANDEM_CUDA_EMULATED_FAULT";
};

TEST(CliGenerate, FinishesOnTheCpuWhenThePreferredGpuIsLost) {
  const std::vector<std::string> arguments = {
      "generate", "-m", kModel, "-p", "23+45=", "-n", "4", "--device", "prefer:cuda:emulated"};
  const CliResult undisturbed = RunCli(arguments);
  ASSERT_EQ(undisturbed.code, kExitOk) << undisturbed.err;
  const FaultVariable fault("lost@LaunchGraph:1");
  const CliResult result = RunCli(arguments);
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.out, undisturbed.out);
  EXPECT_THAT(result.err, HasSubstr("cuda:emulated: device lost after"));
  EXPECT_THAT(result.err, HasSubstr("went on with the CPU, the cache computed again"));
  std::vector<std::string> with_json = arguments;
  with_json.emplace_back("--json");
  const auto json = nlohmann::json::parse(RunCli(with_json).out, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["text"], "68");
  EXPECT_EQ(json["faults"]["lost_devices"], 1);
  EXPECT_EQ(json["faults"]["recoveries"][0]["cause"], "device lost");
  EXPECT_EQ(json["faults"]["recoveries"][0]["cache"], "computed");
}

TEST(CliGenerate, FailsLoudlyWhenTheForcedGpuIsLost) {
  const FaultVariable fault("lost@LaunchGraph:1");
  const CliResult result =
      RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4", "--device", "cuda:emulated"});
  EXPECT_EQ(result.code, kExitFailed);
  EXPECT_THAT(result.err, HasSubstr("LaunchGraph: the device is lost"));
}

TEST(CliGenerate, FaultsAreForTheEmulatedDevice) {
  const WithoutGpu alone;
  const FaultVariable fault("lost@LaunchGraph:1");
  const CliResult result = RunCli({"generate", "-m", kModel, "-p", "23+45=", "-n", "4"});
  EXPECT_EQ(result.code, kExitUsage);
  EXPECT_THAT(result.err, HasSubstr("TANDEM_CUDA_EMULATED_FAULT"));
}

}  // namespace
}  // namespace tandem::tools
