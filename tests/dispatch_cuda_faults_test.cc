// Calls of the runtime that fail while an op runs on operands that are in device memory already
// (dispatch_cuda_transfer_test.cc: operands in host memory): nothing is left behind, nothing wrong
// is written, and the context goes on.
#include <gtest/gtest.h>

#include "core/status.h"
#include "cuda/caching_allocator.h"
#include "dispatch/run.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

// One run with a call failing; false once no call is left to fail.
template <typename Case>
void RunWithFault(Context& context, const Prepared<Case>& prepared, bool host_lists,
                  const cuda::Fault& fault, bool& happened, bool& failed) {
  cuda::EmulatedRuntime& runtime = RuntimeOf(context);
  ContextDevice& device = *context.device(DeviceKind::kCuda);
  auto& allocator = static_cast<cuda::CachingAllocator&>(device.backend->allocator());
  auto operands = DeviceOperands::Upload(prepared.operands, *device.backend, *device.stream);
  ASSERT_TRUE(operands.ok()) << operands.status();
  ASSERT_TRUE(device.stream->Synchronize().ok());
  // Nothing kept, so that the workspace comes from the runtime, and plans are made.
  device.scratch.reset();
  ResetBlas(context);
  ASSERT_TRUE(allocator.Flush().ok());
  const cuda::EmulatedStats before = runtime.stats();
  const Views views = host_lists
                          ? WithHostLists(Case::Args::kOp, prepared.operands, operands->views())
                          : operands->views();
  const auto args = prepared.c.Bind(views);

  runtime.Inject(fault);
  absl::Status status = RunOp(context, args);
  failed = !status.ok();
  // An error of waiting says nothing about the work.
  device.stream->Synchronize().IgnoreError();
  happened = runtime.fault_happened();
  runtime.Heal();
  ASSERT_TRUE(device.stream->Synchronize().ok());

  const auto damage = operands->Download(*device.backend, *device.stream);
  ASSERT_TRUE(damage.ok()) << damage.status();
  ASSERT_EQ(damage->value_or(""), "");
  if (failed) {
    ASSERT_TRUE(happened) << status;
    // Grouped products may run one after the other: those before the one that failed are there.
    if (Case::Args::kOp != OpKind::kGroupedMatMul) {
      ASSERT_EQ(operands->OutputHash(), operands->InitialHash())
          << "a failed call has written: " << status;
    }
  } else {
    Outcome outcome;
    for (const Expectation& expectation : prepared.expectations) {
      ASSERT_EQ(Compare(expectation, operands->Result(expectation.operand), outcome), "");
    }
  }
  device.scratch.reset();
  ResetBlas(context);
  ASSERT_TRUE(allocator.Flush().ok());
  ASSERT_EQ(runtime.stats(), before) << "something was left behind";
}

template <typename Case>
void EveryCallFails(Context& context, const Prepared<Case>& prepared, bool host_lists) {
  for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                          cuda::Fault::Kind::kDeviceLost}) {
    int64_t failures = 0;
    bool happened = true;
    for (int64_t ordinal = 1; happened; ++ordinal) {
      SCOPED_TRACE(absl::StrCat(CaseText(prepared.c), host_lists ? ", lists on the host" : "",
                                ", call ", ordinal));
      ASSERT_LT(ordinal, 1000);
      bool failed = false;
      RunWithFault(context, prepared, host_lists, {.ordinal = ordinal, .kind = kind}, happened,
                   failed);
      if (testing::Test::HasFatalFailure()) return;
      failures += failed;
    }
    EXPECT_GE(failures, 1) << CaseText(prepared.c);  // at least: launch
  }
}

TEST(CudaFaultsOnDevice, EveryCallOfEveryOpMayFail) {
  const auto context = EmulatedContext(/*forced=*/true);
  ForEachCaseType([&]<typename Case>() {
    for (const Prepared<Case>& prepared : FaultCases<Case>()) {
      EveryCallFails(*context, prepared, /*host_lists=*/false);
      if (HasFatalFailure()) return;
    }
  });
}

TEST(CudaFaultsOnDevice, AlsoWithListsInHostMemory) {
  const auto context = EmulatedContext(/*forced=*/true);
  int64_t cases = 0;
  ForEachCaseType([&]<typename Case>() {
    for (const Prepared<Case>& prepared : ListCases<Case>()) {
      EveryCallFails(*context, prepared, /*host_lists=*/true);
      if (HasFatalFailure()) return;
      ++cases;
    }
  });
  EXPECT_GE(cases, 2);
}

}  // namespace
}  // namespace tandem::cases
