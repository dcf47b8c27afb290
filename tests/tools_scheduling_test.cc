// What the commands say about the scheduler's profile, and the device that the environment names.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dispatch/cost_profile.h"
#include "tests/cli.h"
#include "tests/scoped_env.h"
#include "tests/simulated_machine.h"

namespace tandem::tools {
namespace {

using ::testing::HasSubstr;

// A cache folder of its own, and the emulated device.
class ProfileWarning : public testing::Test {
 protected:
  ProfileWarning() { key_ = Context::Create().value()->machine_key(); }
  ~ProfileWarning() override { std::filesystem::remove_all(folder_); }
  // What `explain` writes to stderr where the profile's file says this.
  std::string WarningOf(const std::string& text, const std::string& path) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << text;
    const CliResult result = RunCli({"explain", "--op", "matmul", "-M", "64"});
    EXPECT_EQ(result.code, kExitOk) << result.err;
    return result.err;
  }

  const std::string folder_ = testing::TempDir() + "profile_warning";
  const ScopedEnv cache_{"XDG_CACHE_HOME", folder_}, emulated_{"TANDEM_CUDA_EMULATED", "1"},
      threads_{"TANDEM_THREADS", "1"};
  std::string key_;
};

TEST_F(ProfileWarning, AnIgnoredProfileIsSaidInOneLineWithItsReason) {
  const std::string path = DefaultCostProfilePath(key_);
  EXPECT_EQ(RunCli({"explain", "--op", "matmul", "-M", "64"}).err, "");  // no profile, no warning
  struct Bad {
    std::string text, reason;
  };
  for (const Bad& bad :
       {Bad{"{", "expected a JSON object"}, Bad{"", "expected a JSON object"},
        Bad{R"({"format": "tandem cost profile 0"})", "format: expected 'tandem cost profile 1'"},
        Bad{R"({"format": "tandem cost profile 1", "machine": "other", "devices": [{"device":)"
            R"("cpu", "name": "c", "launch_seconds": 1e-6, "bytes_per_second": 1e9}],)"
            R"("copies": [], "tables": []})",
            "was measured on another machine (other), this is "}}) {
    const std::string warning = WarningOf(bad.text, path);
    EXPECT_THAT(warning, HasSubstr("warning: cost profile ignored: "));
    EXPECT_THAT(warning, HasSubstr(bad.reason));
    EXPECT_THAT(warning, HasSubstr(path));
    EXPECT_EQ(std::count(warning.begin(), warning.end(), '\n'), 1) << warning;
  }
  // The library itself keeps it to itself.
  const auto context = Context::Create().value();
  ASSERT_EQ(context->warnings().size(), 1u);
  EXPECT_EQ(context->warnings()[0], "cost profile " + context->cost_profile_note());
}

TEST_F(ProfileWarning, OneFromBeforeTheDriverChangedIsStale) {
  CostProfile profile;
  profile.machine = key_ + ", driver 1.0";
  profile.devices[DeviceKind::kCpu] = {"cpu", 1e-6, 1e9};
  ASSERT_TRUE(SaveCostProfile(DefaultCostProfilePath(profile.machine), profile).ok());
  const CliResult result = RunCli({"explain", "--op", "matmul", "-M", "64"});
  EXPECT_THAT(result.err, HasSubstr("cost profile ignored: it was measured with"));
  EXPECT_THAT(result.err, HasSubstr("driver 1.0"));
  EXPECT_THAT(result.err, HasSubstr("tandem calibrate measures anew"));
}

// ---- explain ----

// A profile of a machine that does not exist, in a file.
class ExplainByProfile : public testing::Test {
 protected:
  ExplainByProfile() {
    simulated::Machine machine(simulated::Machines()[0]);
    EXPECT_TRUE(SaveCostProfile(path_, machine.Calibrate().profile()).ok());
  }
  ~ExplainByProfile() override { std::filesystem::remove(path_); }
  CliResult Explain(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"explain", "--profile", path_});
    return RunCli(arguments);
  }
  nlohmann::json Json(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const CliResult result = Explain(arguments);
    EXPECT_EQ(result.code, kExitOk) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  }
  const std::string path_ = testing::TempDir() + "explained_profile.json";
};

TEST_F(ExplainByProfile, PredictsEveryOpOnBothDevices) {
  for (const char* op : {"attention", "matmul", "mask", "softmax", "rms_norm", "rope", "silu_mul",
                         "add", "cast", "argmax"}) {
    SCOPED_TRACE(op);
    const auto json = Json({"--op", op});
    EXPECT_EQ(json["predicted"].size(), 2u);
    EXPECT_THAT(json["reason"].get<std::string>(), HasSubstr("predicted: "));
    EXPECT_GT(json["kernels"].size(), 1u);
  }
}

// The class whose times are looked up: int8 caches have one of their own.
TEST_F(ExplainByProfile, NamesTheClassThatItPredictsFrom) {
  for (const auto& [kv_dtype, measured] :
       {std::pair("i8", "attention f32 x i8"), std::pair("f16", "attention f32 x f16")}) {
    const auto json = Json({"--op", "attention", "--kv-dtype", kv_dtype});
    for (const auto& prediction : json["predicted"]) EXPECT_EQ(prediction["measured"], measured);
  }
  CostProfile profile = ReadCostProfile(path_).value();
  std::erase_if(profile.tables,
                [](const CostTable& table) { return table.cost_class.weights == DType::kI8; });
  ASSERT_TRUE(SaveCostProfile(path_, profile).ok());
  EXPECT_THAT(Explain({"--op", "attention", "--kv-dtype", "i8"}).out,
              HasSubstr("attention f32 x f16"));
}

TEST_F(ExplainByProfile, SaysHowBothDevicesWouldShareTheCall) {
  const auto attention = Json({"--op", "attention", "--kv-len", "60000"});
  EXPECT_THAT(attention["shared"].get<std::string>(), HasSubstr(" of 60000 keys on the GPU"));
  EXPECT_THAT(Json({"--op", "matmul", "-N", "65536"})["shared"].get<std::string>(),
              HasSubstr("of 65536 columns on the GPU"));
  EXPECT_FALSE(Json({"--op", "rms_norm"}).contains("shared"));
}

TEST_F(ExplainByProfile, BadInputIsNamed) {
  struct Bad {
    std::vector<std::string> arguments;
    std::string names;
  };
  for (const Bad& bad : {Bad{{"--op", "conv"}, "--op"},
                         Bad{{"--op", "rope", "-N", "100"}, "-N: expected a multiple of 128"},
                         Bad{{"--op", "matmul", "--weights", "q9"}, "--weights: unknown dtype"},
                         Bad{{"--op", "attention", "--kv-dtype", "q4_k"}, "k"},
                         Bad{{"--op", "attention", "--q-heads", "30"}, "heads"},
                         Bad{{"--op", "matmul", "-M", "-1"}, "-M"},
                         Bad{{"--op", "matmul", "-K", "9223372036854775807"}, "-K"},
                         Bad{{"--op", "matmul", "--kernel", "matmul=none"}, "none"}}) {
    const CliResult result = Explain(bad.arguments);
    EXPECT_NE(result.code, kExitOk) << bad.names;
    EXPECT_THAT(result.err, HasSubstr(bad.names));
  }
  // A forced kernel that cannot is no other one.
  const CliResult forced = RunCli({"explain", "--op", "matmul", "-M", "64", "--device", "cpu",
                                   "--kernel", "matmul=gemv_scalar"});
  EXPECT_EQ(forced.code, kExitFailed);
  EXPECT_THAT(forced.out, HasSubstr("cannot run on cpu: kernel gemv_scalar is forced"));
  std::ofstream(path_) << "{}";
  EXPECT_THAT(Explain({"--op", "matmul"}).err, HasSubstr("--profile " + path_));
  const ScopedEnv file("TANDEM_POLICY_FILE", path_);
  std::ofstream(path_) << R"({"polcy": "cpu"})";
  EXPECT_THAT(RunCli({"explain", "--op", "matmul"}).err, HasSubstr(path_));
}

// ---- TANDEM_DEVICE=hybrid ----

class DeviceOfTheEnvironment : public testing::Test {
 protected:
  static CliResult Generate(const char* device, std::vector<std::string> more) {
    const ScopedEnv variable("TANDEM_DEVICE", device);
    std::vector<std::string> arguments = {
        "generate", "-m",     TANDEM_SOURCE_DIR "/models/demo.gguf",
        "-p",       "23+45=", "-n",
        "2",        "--json", "-t",
        "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunCli(arguments);
  }
};

TEST_F(DeviceOfTheEnvironment, HybridIsAsOnTheCommandLine) {
  const CliResult result = Generate("hybrid:emulated", {"--gpu-layers", "1"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_THAT(result.out, HasSubstr("\"text\": \"68\""));
  EXPECT_THAT(result.out, HasSubstr("\"placement\": "));
  EXPECT_THAT(result.out, HasSubstr("on cuda, "));
  // It wins over the option, as everything in the environment does.
  const CliResult cpu = Generate("cpu", {"--device", "hybrid:emulated"});
  ASSERT_EQ(cpu.code, kExitOk) << cpu.err;
  EXPECT_THAT(cpu.out, testing::Not(HasSubstr("placement")));
}

TEST_F(DeviceOfTheEnvironment, WhatCannotBeIsSaid) {
  const CliResult unknown = Generate("hybird", {});
  EXPECT_EQ(unknown.code, kExitUsage);
  EXPECT_THAT(unknown.err,
              HasSubstr("TANDEM_DEVICE: expected cpu, cuda, cuda:emulated, prefer:cuda "
                        "or hybrid, got 'hybird'"));
  const CliResult layers = Generate("cpu", {"--gpu-layers", "1"});
  EXPECT_EQ(layers.code, kExitUsage);
  EXPECT_THAT(layers.err, HasSubstr("TANDEM_DEVICE=hybrid"));
  ContextOptions options;
  options.cuda = true;
  if (Context::Create(options).value()->device(DeviceKind::kCuda) == nullptr) {
    const CliResult none = Generate("hybrid", {});
    EXPECT_NE(none.code, kExitOk);
    EXPECT_THAT(none.err, HasSubstr("hybrid: there is no GPU"));
  }
}

// ---- A GPU beside the CPU, and nothing else said ----

// The demo tells the same story, and its ops run on both devices: so says the trace.
TEST(DemoBesideAGpu, RunsOnBothDevices) {
  const std::string path = testing::TempDir() + "demo_beside_a_gpu.json";
  const std::vector<std::string> story = {"generate",
                                          "-m",
                                          TANDEM_SOURCE_DIR "/models/demo.gguf",
                                          "-p",
                                          "Once there was a girl named Mia.",
                                          "-n",
                                          "60",
                                          "--trace",
                                          path};
  const auto run = [&](const char* emulated) {
    const ScopedEnv variable("TANDEM_CUDA_EMULATED", emulated);
    const CliResult result = RunCli(story);
    EXPECT_EQ(result.code, kExitOk) << result.err;
    return result.out;
  };
  const auto calls = [&] {
    std::ifstream file(path);
    const auto json = nlohmann::json::parse(file, nullptr, false);
    std::map<std::string, std::map<std::string, int>> by_device;
    std::map<int, std::string> names;
    for (const auto& event : json["traceEvents"]) {
      if (event["ph"] == "M") names[event["tid"]] = event["args"]["name"];
    }
    for (const auto& event : json["traceEvents"]) {
      if (event["ph"] == "X") ++by_device[names[event["tid"]]][event["name"]];
    }
    return by_device;
  };
  const std::string alone = run("0");
  EXPECT_FALSE(calls().contains("cuda:emulated"));
  const std::string beside = run("1");
  EXPECT_EQ(beside, alone);
  auto both = calls();
  EXPECT_GT(both["cpu"]["matmul"] + both["cpu"]["grouped_matmul"], 100);
  EXPECT_GE(both["cuda:emulated"]["attention"], 4);  // from 64 keys on
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace tandem::tools
