#include <dlfcn.h>
#include <gtest/gtest.h>

#include <string>

#include "cuda/backend.h"
#include "cuda/driver_release.h"

namespace tandem::cuda {
namespace {

TEST(DeviceProbe, MessageAgreesWithTheFacts) {
  const Probe probe = ProbeDevices();
  SCOPED_TRACE(probe.message);
  EXPECT_EQ(probe.built_with_cuda, !probe.toolkit_version.empty());
  if (!probe.built_with_cuda) {
    EXPECT_NE(probe.message.find("built without CUDA"), std::string::npos);
  } else {
    EXPECT_NE(probe.message.find(probe.toolkit_version), std::string::npos);
  }
  EXPECT_EQ(probe.devices.empty(), probe.message.find("CPU only") != std::string::npos);
}

TEST(DeviceProbe, NoDriverMeansNoDevices) {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver != nullptr) {
    dlclose(driver);
    GTEST_SKIP() << "this machine has a CUDA driver";
  }
  const Probe probe = ProbeDevices();
  EXPECT_TRUE(probe.devices.empty());
  EXPECT_TRUE(probe.driver_version.empty());
}

TEST(DeviceProbe, DescribesEachDevice) {
  for (const DeviceInfo& device : ProbeDevices().devices) {
    EXPECT_FALSE(device.name.empty());
    EXPECT_GT(device.multiprocessors, 0) << device.name;
    EXPECT_GT(device.memory_bytes, 0) << device.name;
    EXPECT_GE(device.compute_capability_major, 3) << device.name;
  }
}

TEST(DeviceProbe, CanBeRepeated) {
  const Probe first = ProbeDevices();
  const Probe second = ProbeDevices();
  EXPECT_EQ(first.message, second.message);
  EXPECT_EQ(first.devices.size(), second.devices.size());
}

TEST(DriverRelease, IsWhatTheDriverSays) {
  EXPECT_EQ(
      ParseDriverRelease("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug "
                         "19 01:15:15 UTC 2023\nGCC version:  gcc version 12.3.0\n"),
      "535.104.05");
  EXPECT_EQ(
      ParseDriverRelease("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  "
                         "Release Build  (dvs-builder@U22)"),
      "580.65.06");
  for (const char* text : {"", "\n1.2", "12", "version 1.", "a1.2"}) {
    EXPECT_EQ(ParseDriverRelease(text), "") << text;
  }
}

}  // namespace
}  // namespace tandem::cuda
