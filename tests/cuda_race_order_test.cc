// Calls that order memory whose absence neither the emulator nor a wrong result shows (see
// cuda_missing_order_test.cc): left out one at a time, ThreadSanitizer must report what they order.
#include <gtest/gtest.h>

#include <string>

#include "cuda/emulator/ordering_calls.h"
#include "dispatch/registry.h"
#include "tests/cases/attention_cases.h"
#include "tests/emulated_device.h"
#include "tests/race_reports.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using cuda::emulator::OrderingCalls;

void Run(const std::string& kernel, const AttentionCase& c, OrderingCalls& calls) {
  cuda::EmulatedRuntimeOptions options = EmulatedDevice::Options("random:1,random", nullptr);
  options.emulator.ordering_calls = &calls;
  options.emulator.host_threads = 1;
  const EmulatedDevice device(options);
  const Prepared<AttentionCase> prepared{c, c.MakeOperands(), {}};
  for (const auto& candidate : KernelsOf<AttentionArgs>(DeviceKind::kCuda)) {
    if (candidate.name == kernel) RunPrepared(prepared, candidate, device.target());
  }
}

// Is there a report without one of the calls "NAME FILE" of the kernel, and none with all of them?
void ExpectReportWithout(const std::string& call, const std::string& kernel,
                         const std::string& text) {
  if (!kThreadSanitized) GTEST_SKIP() << "needs ThreadSanitizer";
  const auto c = ParseCase<AttentionCase>("attention " + text);
  ASSERT_TRUE(c.ok()) << c.status();
  OrderingCalls calls;
  const int before = RaceReports();
  Run(kernel, *c, calls);
  ASSERT_EQ(RaceReports(), before);
  const RacesExpected expected;
  int met = 0;
  for (const std::string& place : calls.met()) {
    if (place.rfind(call + ":", 0) != 0) continue;
    ++met;
    const int reports = expected.reports();
    calls.LeaveOut(place);
    Run(kernel, *c, calls);
    testing::Test::RecordProperty(place, expected.reports() - reports);
  }
  EXPECT_GT(met, 0) << call << " is not called";
  EXPECT_GT(expected.reports(), 0) << call;
}

constexpr char kDecode[] = "q_heads=4 kv_heads=2 kv_len=700 head_dim=32 kv_dtype=f16 lse=1";
constexpr char kFresh[] = "q_heads=8 kv_heads=1 q_len=3 kv_len=70 new_len=20 kv_dtype=f32 lse=1";

// Parts of other blocks are read after the counter says that they are there.
TEST(RaceOrder, FenceBeforeTheMergeOfDecode) {
  ExpectReportWithout("FenceDevice attention_decode_block.h", "decode", kDecode);
}
// The other threads' parts, before thread 0 counts the block in; the counter's answer.
TEST(RaceOrder, BarriersAroundTheCounterOfDecode) {
  ExpectReportWithout("SyncThreads attention_decode_block.h", "decode", kDecode);
}
// Shuffles order no memory.
TEST(RaceOrder, WarpsOfDecodeInF32) {
  ExpectReportWithout("SyncWarp attention_decode_fma.h", "decode", kFresh);
}
TEST(RaceOrder, WarpsOfNewKeys) {
  ExpectReportWithout("SyncWarp attention_decode_fresh.h", "decode", kFresh);
}
TEST(RaceOrder, WarpsOfHopper) {
  ExpectReportWithout("SyncWarp attention_hopper_kernel.h", "hopper",
                      "batch=2 q_len=140 kv_len=436 page_size=16 q_dtype=f16 kv_dtype=f16");
}

}  // namespace
}  // namespace tandem::cases
