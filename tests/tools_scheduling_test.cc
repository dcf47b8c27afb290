// What the commands say about the scheduler's profile, and the device that the environment names.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "dispatch/cost_profile.h"
#include "tests/cli.h"

namespace tandem::tools {
namespace {

using ::testing::HasSubstr;

// A cache folder of its own, and the emulated device.
class ProfileWarning : public testing::Test {
 protected:
  ProfileWarning() {
    if (const char* cache = std::getenv("XDG_CACHE_HOME")) before_ = cache;
    setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
    setenv("TANDEM_CUDA_EMULATED", "1", 1);
    setenv("TANDEM_THREADS", "1", 1);
    key_ = Context::Create().value()->machine_key();
  }
  ~ProfileWarning() override {
    if (before_.empty()) {
      unsetenv("XDG_CACHE_HOME");
    } else {
      setenv("XDG_CACHE_HOME", before_.c_str(), 1);
    }
    unsetenv("TANDEM_CUDA_EMULATED");
    unsetenv("TANDEM_THREADS");
    std::filesystem::remove_all(folder_);
  }
  // What `explain` writes to stderr where the profile's file says this.
  std::string WarningOf(const std::string& text, const std::string& path) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << text;
    const CliResult result = RunCli({"explain", "--op", "matmul", "-M", "64"});
    EXPECT_EQ(result.code, kExitOk) << result.err;
    return result.err;
  }

  std::string before_;
  const std::string folder_ = testing::TempDir() + "profile_warning";
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

// ---- TANDEM_DEVICE=hybrid ----

class DeviceOfTheEnvironment : public testing::Test {
 protected:
  ~DeviceOfTheEnvironment() override { unsetenv("TANDEM_DEVICE"); }
  static CliResult Generate(const char* device, std::vector<std::string> more) {
    setenv("TANDEM_DEVICE", device, 1);
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

}  // namespace
}  // namespace tandem::tools
