// Would ThreadSanitizer notice? In its build it must be on, and watch every CUDA kernel: each of
// them is run with a race planted, by running its blocks twice, and must be reported. (That none is
// reported without is what the other tests show.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda/emulator/launch.h"
#include "dispatch/registry.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_device.h"
#include "tests/race_reports.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

#ifdef TANDEM_MUST_DETECT_RACES
TEST(RaceDetector, IsOn) {
  EXPECT_TRUE(kThreadSanitized);
  EXPECT_TRUE(cuda::emulator::DetectsRaces());
}
#endif

// Runs cases on a device whose blocks run twice, until a race is reported.
class TwinRuns {
 public:
  TwinRuns() { Renew(); }

  // Has ThreadSanitizer reported one of the functions that the kernel launches for the case?
  template <typename Case>
  bool Reported(const Prepared<Case>& prepared, const Kernel<typename Case::Args>& kernel) {
    statistics_->launches.clear();
    const RacesExpected expected;
    const Outcome outcome = RunPrepared(prepared, kernel, device_->target());
    if (outcome.kind == Outcome::Kind::kUnsupported) return false;
    // What twins leave behind is wrong, and may be wrong enough for the emulator to stop them.
    if (!device_->stream().Synchronize().ok()) Renew();
    // ThreadSanitizer reports one race once, whichever kernel of a list launched the function.
    bool reported = expected.reports() > 0;
    for (const auto& [function, launches] : statistics_->launches) {
      reported = reported || reported_.contains(function.second);
      if (expected.reports() > 0) reported_.insert(function.second);
    }
    return reported;
  }

 private:
  void Renew() {
    cuda::EmulatedRuntimeOptions options = EmulatedDevice::Options("fifo", statistics_.get());
    options.emulator.twin_blocks = true;
    options.emulator.host_threads = 1;  // which keeps its fibers
    device_ = std::make_unique<EmulatedDevice>(options);
  }

  std::unique_ptr<cuda::emulator::EmulatorStatistics> statistics_ =
      std::make_unique<cuda::emulator::EmulatorStatistics>();
  std::unique_ptr<EmulatedDevice> device_;
  std::set<void (*)(const void*)> reported_;  // functions
};

TEST(RaceDetector, WatchesEveryCudaKernel) {
  if (!kThreadSanitized) GTEST_SKIP() << "needs ThreadSanitizer";
  TwinRuns runs;
  int64_t watched = 0;
  ForEachCaseType([&]<typename Case>() {
    std::set<std::string> missing;
    const auto kernels = KernelsOf<typename Case::Args>(DeviceKind::kCuda);
    for (const auto& kernel : kernels) missing.insert(std::string(kernel.name));
    for (const Case& c : Case::Grid(GridSize::kShort)) {
      if (missing.empty()) break;
      if (ExpectedCode(c) != absl::StatusCode::kOk) continue;
      const Prepared<Case> prepared{c, c.MakeOperands(), {}};  // results mean nothing
      ASSERT_TRUE(prepared.operands.status().ok()) << prepared.operands.status();
      for (const auto& kernel : kernels) {
        const std::string name(kernel.name);
        if (missing.contains(name) && runs.Reported(prepared, kernel)) missing.erase(name);
      }
    }
    EXPECT_THAT(missing, testing::IsEmpty()) << OpNameOf<Case>();
    watched += static_cast<int64_t>(kernels.size());
  });
  EXPECT_GT(watched, 30);
}

}  // namespace
}  // namespace tandem::cases
