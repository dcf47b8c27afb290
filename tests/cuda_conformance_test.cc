// Every primitive of cuda/device/ on the emulated device, against its documentation and, where one
// has been recorded, against what a GPU answered (tests/golden/primitives-*.cbor).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "cuda/conformance/suite.h"
#include "cuda/runtime/emulated_runtime.h"

namespace tandem::cuda {
namespace {

class Conformance : public ::testing::TestWithParam<const char*> {};

TEST_P(Conformance, OfEveryPrimitive) {
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
