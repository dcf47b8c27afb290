// Every primitive of cuda/device/ on the emulated device, against its documentation and, where one
// has been recorded, against what a GPU answered (tests/golden/primitives-*.cbor).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "cuda/conformance/suite.h"
#include "cuda/runtime/emulated_runtime.h"
#include "tests/sanitizers.h"

namespace tandem::cuda {
namespace {

class Conformance : public ::testing::TestWithParam<const char*> {};

TEST_P(Conformance, OfEveryPrimitive) {
  if (kThreadSanitized && GetParam() != std::string("reverse,random")) GTEST_SKIP() << "one mode";
  EmulatedRuntimeOptions options;
  options.emulator = emulator::EmulatorOptions::Parse(GetParam()).value();
  const std::unique_ptr<Runtime> runtime = MakeEmulatedRuntime(options);
  const DeviceInfo device = runtime->Devices().devices.at(0);
  int ran = 0;
  for (const ConformanceCase& c : ConformanceCases()) {
    const ConformanceResult result = RunConformanceCase(c, *runtime, device);
    EXPECT_EQ(result.skipped, "") << c.name;
    EXPECT_EQ(result.error, "") << c.name;
    ++ran;
  }
  EXPECT_GT(ran, 300);
}

// Header and generator must not drift apart.
TEST(ConformanceSuite, WgmmaInstructionsAreAsGenerated) {
  const std::string command =
      "python3 '" TANDEM_SOURCE_DIR "/tools/generate_wgmma.py' '" TANDEM_SOURCE_DIR
      "/cuda/device/warpgroup_instructions.h'";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

// What GPUs answered: tests/golden/primitives-<gpu>.cbor, written by check-primitives --record.
TEST(ConformanceSuite, RecordingsOfGpusAreMet) {
  const std::unique_ptr<Runtime> runtime = MakeEmulatedRuntime({});
  const DeviceInfo device = runtime->Devices().devices.at(0);
  int recordings = 0;
  for (const auto& entry : std::filesystem::directory_iterator(TANDEM_SOURCE_DIR "/tests/golden")) {
    if (entry.path().extension() != ".cbor") continue;
    ++recordings;
    std::ifstream file(entry.path(), std::ios::binary);
    const auto recording = nlohmann::json::from_cbor(file, true, false);
    ASSERT_TRUE(recording.is_object()) << entry.path();
    for (const ConformanceCase& c : ConformanceCases()) {
      if (!recording["cases"].contains(c.name)) continue;
      const auto& binary = recording["cases"][c.name].get_binary();
      const auto* data = reinterpret_cast<const std::byte*>(binary.data());
      const ConformanceResult result = RunConformanceCase(c, *runtime, device);
      EXPECT_EQ(Difference(c, Bytes(data, data + binary.size()), result.output), "")
          << entry.path() << ": " << c.name;
    }
  }
  if (recordings == 0) GTEST_SKIP() << "none has been recorded: no GPU so far";
}

INSTANTIATE_TEST_SUITE_P(Modes, Conformance,
                         ::testing::Values("fifo", "lifo,eager", "reverse,random",
                                           "random:3,random"));

TEST(ConformanceSuite, NamesAreUnique) {
  std::set<std::string> names;
  for (const ConformanceCase& c : ConformanceCases()) {
    EXPECT_TRUE(names.insert(c.name).second) << c.name;
    EXPECT_FALSE(c.expected.empty()) << c.name;
  }
}

// A case that cannot fail would show nothing: one byte is enough.
TEST(ConformanceSuite, DifferencesAreFound) {
  for (const ConformanceCase& c : ConformanceCases()) {
    Bytes other = c.expected;
    other[other.size() / 2 | 3] ^= std::byte{0x41};
    EXPECT_NE(Difference(c, c.expected, other), "") << c.name;
    EXPECT_EQ(Difference(c, c.expected, c.expected), "") << c.name;
    other.pop_back();
    EXPECT_THAT(Difference(c, c.expected, other), ::testing::HasSubstr("bytes, expected"));
  }
}

}  // namespace
}  // namespace tandem::cuda
