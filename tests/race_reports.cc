#include "tests/race_reports.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string_view>

namespace tandem {
namespace {

std::atomic<int> reports{0};
std::atomic<int> excused{0};
std::atomic<int> expecting{0};

class Listener : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo&) override { before_ = reports - excused; }
  void OnTestEnd(const ::testing::TestInfo& info) override {
    if (std::string_view(info.test_suite_name()) == "EmulatorCatches") return;  // planted bugs
    const int races = reports - excused - before_;
    EXPECT_EQ(races, 0) << info.name() << ": ThreadSanitizer reported data races";
  }
  int before_ = 0;
};

class Environment : public ::testing::Environment {
  void SetUp() override { ::testing::UnitTest::GetInstance()->listeners().Append(new Listener()); }
};
[[maybe_unused]] ::testing::Environment* const environment =
    ::testing::AddGlobalTestEnvironment(new Environment());

}  // namespace

int RaceReports() { return reports; }

RacesExpected::RacesExpected() : before_(RaceReports()) { ++expecting; }
RacesExpected::~RacesExpected() { --expecting; }

}  // namespace tandem

// ThreadSanitizer's defaults in these executables: the tests judge, not the exit status; and every
// race is reported although another was at the same address before: shared memory of the emulated
// device is the same memory in every kernel.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() { return "exitcode=0:suppress_equal_addresses=0"; }

// Called by ThreadSanitizer's runtime with every report.
extern "C" __attribute__((visibility("default"))) void __tsan_on_report(void*);
extern "C" void __tsan_on_report(void*) {
  ++tandem::reports;
  if (tandem::expecting > 0) ++tandem::excused;
}
