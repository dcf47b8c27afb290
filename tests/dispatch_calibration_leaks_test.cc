// Calibration on the emulated device leaves nothing there: no memory, events, pinned buffers or
// plans, whether it ends well or a call of the runtime fails on the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "cuda/caching_allocator.h"
#include "dispatch/cost_calibration.h"
#include "dispatch/kernel_calibration.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

class CalibrationLeaks : public testing::Test {
 protected:
  // What is alive but for what the context keeps to use again.
  cuda::EmulatedStats Alive() {
    ContextDevice& device = *context_->device(DeviceKind::kCuda);
    EXPECT_TRUE(device.stream->Synchronize().ok());
    device.scratch.reset();
    ResetBlas(*context_);
    EXPECT_TRUE(static_cast<cuda::CachingAllocator&>(device.backend->allocator()).Flush().ok());
    return RuntimeOf(*context_).stats();
  }

  // Launches, copies both ways, and the calls of one class.
  absl::Status CalibrateCostsOf(const CostClass& cost_class) {
    CostCalibrationOptions options;
    options.seconds = 1;
    options.longest_call = 0.05;  // a sanitised emulator takes some of it
    options.only = [&](const CostClass& c) { return c == cost_class; };
    return CalibrateCosts(*MakeTimedMachine(*context_), options).status();
  }

  std::unique_ptr<Context> context_ = EmulatedContext(/*forced=*/true);
};

TEST_F(CalibrationLeaks, TimesOfCalls) {
  const cuda::EmulatedStats before = Alive();
  EXPECT_EQ(before.allocations, 0);
  for (const CostClass& cost_class :
       {CostClass{.op = OpKind::kAdd}, CostClass{.op = OpKind::kMatMul, .weights = DType::kQ8_0},
        CostClass{.op = OpKind::kAttention, .weights = DType::kF16}}) {
    const int64_t launches = RuntimeOf(*context_).calls("Launch");
    const absl::Status status = CalibrateCostsOf(cost_class);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_GT(RuntimeOf(*context_).calls("Launch"), launches + 4) << "nothing ran on the device";
    EXPECT_EQ(Alive(), before) << Describe(cost_class);
  }
}

TEST_F(CalibrationLeaks, TimesOfCallsThatFail) {
  const cuda::EmulatedStats before = Alive();
  cuda::EmulatedRuntime& runtime = RuntimeOf(*context_);
  for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                          cuda::Fault::Kind::kDeviceLost}) {
    for (const char* call : {"Allocate", "AllocatePinned", "Copy", "Launch", "Synchronize"}) {
      for (const int64_t ordinal : {1, 3, 7}) {
        runtime.Inject({.call = call, .ordinal = ordinal, .kind = kind});
        const absl::Status status = CalibrateCostsOf({.op = OpKind::kAdd});
        const bool happened = runtime.fault_happened();
        runtime.Heal();
        // An allocation that fails once is tried again when what was kept has been given back.
        if (!status.ok()) {
          EXPECT_TRUE(happened) << status;
        }
        EXPECT_EQ(Alive(), before) << call << " " << ordinal << ": " << status;
      }
    }
  }
  EXPECT_TRUE(CalibrateCostsOf({.op = OpKind::kAdd}).ok()) << "the context is of use no more";
}

// Its calls run on the CPU: a device that is there too has nothing of them.
TEST_F(CalibrationLeaks, ChoiceOfKernels) {
  const cuda::EmulatedStats before = Alive();
  KernelCalibrationOptions options;
  options.seconds_per_kernel = 1e-4;
  options.only = [](const KernelClass& c) { return c.size == 0 && c.rows <= 1; };
  const auto profile = CalibrateKernels(*context_, options);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_THAT(profile->measurements, testing::Not(testing::IsEmpty()));
  EXPECT_EQ(Alive(), before);
}

}  // namespace
}  // namespace tandem::cases
