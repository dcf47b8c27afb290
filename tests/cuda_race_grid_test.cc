// Every CUDA kernel under ThreadSanitizer, in as few of the shared cases as have every value of
// every field that the kernel takes. Whether a kernel has a race depends on its variant, hardly on
// its numbers: results are judged by cuda_cases_test.cc, in the other builds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/emulator/launch.h"
#include "dispatch/registry.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_device.h"
#include "tests/race_reports.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using cuda::emulator::EmulatorStatistics;

constexpr int64_t kLarge = 512, kMaxBytes = 512 << 10;  // of a size; of all operands
constexpr char kMode[] = "random:1,random";  // an order of threads that is as good as any

// Of a field that counts something the order of magnitude (all that is large is the same: rings
// have come round then), of a factor whether there is one.
template <typename T>
std::string FeatureText(const T& value) {
  if constexpr (std::is_same_v<T, int64_t>) {
    if (value < 0) return "none";
    return absl::StrCat(std::bit_width(static_cast<uint64_t>(std::min(value, kLarge))));
  } else if constexpr (std::is_same_v<T, float>) {
    return value == 0.0f ? "0" : "x";
  } else if constexpr (std::is_same_v<T, std::optional<float>>) {
    return value.has_value() ? "x" : "default";
  } else {
    return FieldText(value);
  }
}

// What a kernel is to meet once.
template <typename Case>
std::vector<std::string> FeaturesOf(const Case& c) {
  std::vector<std::string> features = {c.DTypeLabel()};
  Case::VisitFields(c, [&](std::string_view name, const auto& value) {
    if (name == "seed") return;
    features.push_back(absl::StrCat(std::string(name), "=", FeatureText(value)));
  });
  return features;
}

template <typename Case>
struct Sized {
  int64_t bytes;  // of all operands
  Case c;
};

// The cases of the grid, small ones first: what goes wrong does so in those too.
template <typename Case>
const std::vector<Sized<Case>>& SmallFirst() {
  static const std::vector<Sized<Case>> cases = [] {
    const Operands::WithoutValues quick;
    std::vector<Sized<Case>> sized;
    for (const Case& c : Case::Grid(GridSize::kFull)) {
      if (ExpectedCode(c) != absl::StatusCode::kOk) continue;
      sized.push_back({c.MakeOperands().bytes(), c});
    }
    std::stable_sort(sized.begin(), sized.end(),
                     [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
    return sized;
  }();
  return cases;
}

// Whatever comes out passes, if it lies where it may.
template <typename Case>
Outcome RunUnjudged(const Case& c, const Kernel<typename Case::Args>& kernel,
                    const Target& target) {
  return RunPrepared(Prepared<Case>{c, c.MakeOperands(), {}}, kernel, target);
}

using Functions = std::set<void (*)(const void*)>;

// A device that runs nothing and keeps what was to be launched.
class DryDevice {
 public:
  DryDevice() : device_(Options(&statistics_)) {}

  // What the kernel launches for the case: other instantiations for other types and sizes. Nothing
  // if it does not take it, or has nothing to do.
  template <typename Case>
  std::optional<Functions> Launches(const Kernel<typename Case::Args>& kernel, const Case& c) {
    const Operands::WithoutValues quick;
    statistics_.launches.clear();
    const Outcome outcome = RunUnjudged(c, kernel, device_.target());
    EXPECT_FALSE(outcome.failed()) << outcome.message;
    if (!outcome.passed()) return std::nullopt;
    Functions functions;
    for (const auto& [function, launches] : statistics_.launches) functions.insert(function.second);
    return functions;
  }

 private:
  static cuda::EmulatedRuntimeOptions Options(EmulatorStatistics* statistics) {
    cuda::EmulatedRuntimeOptions options = EmulatedDevice::Options("fifo", statistics);
    options.emulator.dry_run = true;
    return options;
  }

  EmulatorStatistics statistics_;
  EmulatedDevice device_;
};

// Inserts `items`; true if some were not there yet.
template <typename Items>
bool InsertNew(std::set<typename Items::value_type>& into, const Items& items) {
  const size_t before = into.size();
  into.insert(items.begin(), items.end());
  return into.size() > before;
}

// Calls run(c) for each case that launches a function which none of those before did, and for each
// that has a new feature and is not too large; of the cases that the kernel takes.
template <typename Case, typename Run>
void ForEachNewCase(const Kernel<typename Case::Args>& kernel, const Run& run) {
  DryDevice dry;
  std::set<std::string> features;
  Functions functions;
  for (const auto& [bytes, c] : SmallFirst<Case>()) {
    const std::optional<Functions> launched = dry.Launches(kernel, c);
    if (!launched) continue;
    const bool new_function = InsertNew(functions, *launched);
    if (!new_function && bytes > kMaxBytes) continue;
    if (InsertNew(features, FeaturesOf(c)) || new_function) run(c);
  }
}

// The kernels of all ops, "attention.prefill".
std::vector<std::string> AllKernels() {
  std::vector<std::string> names;
  ForEachCaseType([&]<typename Case>() {
    for (const auto& kernel : KernelsOf<typename Case::Args>(DeviceKind::kCuda)) {
      names.push_back(absl::StrCat(OpNameOf<Case>(), ".", std::string(kernel.name)));
    }
  });
  return names;
}

// Calls fn.template operator()<Case>(kernel) for the kernel of that name.
template <typename Fn>
void WithKernel(const std::string& name, const Fn& fn) {
  ForEachCaseType([&]<typename Case>() {
    for (const auto& kernel : KernelsOf<typename Case::Args>(DeviceKind::kCuda)) {
      if (name == absl::StrCat(OpNameOf<Case>(), ".", std::string(kernel.name))) {
        fn.template operator()<Case>(kernel);
      }
    }
  });
}

class CudaRaces : public testing::TestWithParam<std::string> {};

TEST_P(CudaRaces, HasNone) {
  if (!kThreadSanitized) GTEST_SKIP() << "needs ThreadSanitizer";
  cuda::EmulatedRuntimeOptions options = EmulatedDevice::Options(kMode, nullptr);
  // Blocks have no order on one host thread either, and it keeps its fibers.
  options.emulator.host_threads = 1;
  WithKernel(GetParam(), [&]<typename Case>(const Kernel<typename Case::Args>& kernel) {
    const EmulatedDevice device(options);
    int64_t runs = 0;
    ForEachNewCase<Case>(kernel, [&](const Case& c) {
      const int before = RaceReports();
      const Outcome outcome = RunUnjudged(c, kernel, device.target());
      EXPECT_TRUE(outcome.passed()) << outcome.message;
      EXPECT_EQ(RaceReports(), before) << "random:1,random: " << CaseText(c);
      ++runs;
    });
    EXPECT_GT(runs, 0);
    RecordProperty("cases", runs);
  });
}

// That is all there is to watch: the chosen cases launch whatever the whole grid launches.
TEST_P(CudaRaces, CasesLaunchEveryFunction) {
  if (kSanitized) GTEST_SKIP() << "the cases are the same in every build";
  WithKernel(GetParam(), [&]<typename Case>(const Kernel<typename Case::Args>& kernel) {
    DryDevice dry;
    Functions chosen;
    int64_t runs = 0;
    ForEachNewCase<Case>(kernel, [&](const Case& c) {
      ++runs;
      InsertNew(chosen, dry.Launches(kernel, c).value());
    });
    for (const Case& c : Case::Grid(GridSize::kFull)) {
      if (ExpectedCode(c) != absl::StatusCode::kOk) continue;
      const std::optional<Functions> launched = dry.Launches(kernel, c);
      EXPECT_FALSE(launched && InsertNew(chosen, *launched)) << CaseText(c);
    }
    EXPECT_GT(runs, 0);
    RecordProperty("cases", runs);
    RecordProperty("functions", static_cast<int64_t>(chosen.size()));
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaRaces, testing::ValuesIn(AllKernels()), [](const auto& name) {
  std::string text = name.param;
  std::replace(text.begin(), text.end(), '.', '_');
  return text;
});

}  // namespace
}  // namespace tandem::cases
