// What kernels ask of a device when they are launched: threads of a block, shared memory. Printed
// as a table where $TANDEM_CUDA_LAUNCHES names a file (tools/cuda_kernels.sh).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include "cuda/emulator/launch.h"
#include "dispatch/registry.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_device.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using Launches = cuda::emulator::EmulatorStatistics::Launches;

// By name, over all functions that have it.
std::map<std::string, Launches> LaunchesOfAllKernels(size_t every) {
  cuda::emulator::EmulatorStatistics statistics;
  {
    const EmulatedDevice device("fifo", &statistics);
    ForEachCaseType([&]<typename Case>() {
      const std::vector<Case> cases = Case::Grid(GridSize::kShort);
      for (size_t i = 0; i < cases.size(); i += every) {
        const auto prepared = Prepare(cases[i]);
        ASSERT_TRUE(prepared.ok()) << prepared.status();
        for (const auto& kernel : KernelsOf<typename Case::Args>(DeviceKind::kCuda)) {
          const Outcome outcome = RunPrepared(*prepared, kernel, device.target());
          EXPECT_FALSE(outcome.failed()) << outcome.message;
        }
      }
    });
  }
  std::map<std::string, Launches> by_name;
  for (const auto& [function, launches] : statistics.launches) {
    Launches& all = by_name[function.first];
    all.threads = std::max(all.threads, launches.threads);
    all.least_shared_bytes = std::min(all.least_shared_bytes, launches.least_shared_bytes);
    all.most_shared_bytes = std::max(all.most_shared_bytes, launches.most_shared_bytes);
  }
  return by_name;
}

TEST(CudaLaunches, FitEveryDevice) {
  const char* file = std::getenv("TANDEM_CUDA_LAUNCHES");
  const auto all = LaunchesOfAllKernels(file != nullptr ? 1 : kSanitized ? 40 : 10);
  EXPECT_GT(all.size(), 30u);
  for (const auto& [name, launches] : all) {
    EXPECT_GE(launches.threads, 32) << name;
    EXPECT_LE(launches.threads, 1024) << name;
    EXPECT_LE(launches.most_shared_bytes, 227 << 10) << name;
  }
  if (file == nullptr) return;
  std::ofstream out(file);
  out << "| launched function | threads of a block | shared memory, bytes |\n|---|---|---|\n";
  for (const auto& [name, launches] : all) {
    out << "| `" << name << "` | " << launches.threads << " | " << launches.least_shared_bytes;
    if (launches.most_shared_bytes > launches.least_shared_bytes) {
      out << " to " << launches.most_shared_bytes;
    }
    out << " |\n";
  }
  EXPECT_TRUE(out.good());
}

}  // namespace
}  // namespace tandem::cases
