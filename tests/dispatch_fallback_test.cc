// Failures of the GPU at op level: what is decided, counted, logged and traced; back-off; revival.
// (Every call of every op: dispatch_fault_matrix_test.cc.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/graph.h"
#include "dispatch/ops.h"
#include "tests/emulated_context.h"
#include "tests/scoped_env.h"

namespace tandem {
namespace {

using cuda::Fault;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Products of ones on the host, above the policy's threshold, on a context whose log is kept.
class Fallback : public testing::Test {
 protected:
  Fallback() {
    context_->health().SetLog([this](std::string_view line) { log_.emplace_back(line); });
  }
  cuda::EmulatedRuntime& runtime() { return cases::RuntimeOf(*context_); }
  DeviceHealth& health() { return context_->health(); }
  Tensor Ones(int64_t rows, int64_t columns) {
    Tensor tensor =
        *Tensor::Allocate(context_->host_allocator(), DType::kF32, Shape{rows, columns});
    std::fill_n(tensor.As<float>(), rows * columns, 1.0f);
    return tensor;
  }
  absl::Status Multiply(int64_t k = 64) {
    const Tensor a = Ones(9, k);  // so many rows that the library multiplies them
    const auto product = MatMul(*context_, {.a = a, .b = a, .bias = {}, .addend = {}, .out = {}});
    if (product.ok()) {
      EXPECT_EQ(product->As<float>()[15], static_cast<float>(k));
    }
    return product.status();
  }
  bool UsesGpu(int64_t k = 64) {
    const int64_t before = runtime().calls("BlasMatMul") + runtime().calls("Launch");
    EXPECT_TRUE(Multiply(k).ok());
    return runtime().calls("BlasMatMul") + runtime().calls("Launch") > before;
  }

  std::vector<std::string> log_;
  std::unique_ptr<Context> context_ = cases::EmulatedContext(/*forced=*/false);
};

TEST_F(Fallback, AnErrorIsLoggedCountedAndTraced) {
  context_->trace().Enable(true);
  ASSERT_TRUE(health().calm());
  runtime().Inject({.call = "BlasMatMul"});
  ASSERT_TRUE(Multiply().ok());
  EXPECT_THAT(log_, ElementsAre("matmul on cuda:emulated: error (BlasMatMul: injected error): ran "
                                "on the CPU instead"));
  const FaultCounters& counters = health().counters();
  EXPECT_EQ(counters.faults[static_cast<size_t>(FaultCause::kError)], 1);
  EXPECT_EQ(counters.fallbacks[static_cast<size_t>(FaultCause::kError)], 1);
  EXPECT_EQ(counters.all_faults(), 1);
  ASSERT_EQ(health().events().size(), 1u);
  EXPECT_EQ(health().events()[0].number, 1);
  EXPECT_EQ(Name(health().events()[0].device), "cuda:emulated");
  ASSERT_EQ(context_->trace().records().size(), 1u);
  const TraceRecord& record = context_->trace().records()[0];
  EXPECT_EQ(Name(record.device), "cpu");
  EXPECT_EQ(record.decision.rule, Decision::Rule::kGpuFailed);
  EXPECT_EQ(record.fault, 1);
  std::ostringstream json;
  context_->trace().WriteChromeTrace(json, {});
  EXPECT_THAT(json.str(), AllOf(HasSubstr("injected error"), HasSubstr("\"fault\":1"),
                                HasSubstr("it ran on the CPU instead")));
}

TEST_F(Fallback, ForcedDevicesAndKernelsFailLoudly) {
  ASSERT_TRUE(context_->ForceKernel(OpKind::kMatMul, "cublaslt").ok());
  for (const auto kind : {Fault::Kind::kError, Fault::Kind::kOutOfMemory}) {
    runtime().Inject({.call = "BlasMatMul", .kind = kind});
    const absl::Status status = Multiply();
    EXPECT_THAT(Message(status), HasSubstr("BlasMatMul: injected"));
  }
  EXPECT_EQ(health().counters().failed, 2);
  EXPECT_EQ(health().counters().all_fallbacks(), 0);
  EXPECT_EQ(health().counters().retries, 0);
  EXPECT_THAT(log_, ElementsAre(HasSubstr("): failed"), HasSubstr("): failed")));
  const auto forced = cases::EmulatedContext(/*forced=*/true);
  forced->health().SetLog(nullptr);
  const Tensor a = Ones(4, 64);
  for (const auto kind :
       {Fault::Kind::kError, Fault::Kind::kOutOfMemory, Fault::Kind::kDeviceLost}) {
    cases::RuntimeOf(*forced).Inject({.call = "Copy", .kind = kind});
    EXPECT_FALSE(AddInto(*forced, {.a = a, .b = a, .out = a}).ok());
    EXPECT_EQ(a.As<float>()[0], 1.0f);
  }
  EXPECT_FALSE(AddInto(*forced, {.a = a, .b = a, .out = a}).ok()) << "it stays lost";
}

TEST_F(Fallback, WrongCallsAreNotFaults) {
  const Tensor a = Ones(4, 64);
  EXPECT_FALSE(
      MatMul(*context_, {.a = a, .b = Ones(4, 63), .bias = {}, .addend = {}, .out = {}}).ok());
  EXPECT_EQ(health().counters(), FaultCounters());
}

TEST_F(Fallback, OutOfMemoryIsTriedAgainOnceMemoryIsGivenBack) {
  // Kept blocks, and the workspace, fill the device.
  ASSERT_TRUE(Multiply(1024).ok());
  ContextDevice& device = *context_->device(DeviceKind::kCuda);
  ASSERT_GT(runtime().stats().allocations, 0);
  runtime().Inject({.call = "BlasMatMul", .kind = Fault::Kind::kOutOfMemory});
  const int64_t before = runtime().calls("BlasMatMul");
  ASSERT_TRUE(Multiply(1024).ok());
  EXPECT_EQ(runtime().calls("BlasMatMul"), before + 2) << "the GPU did it";
  EXPECT_EQ(health().counters().retries, 1);
  EXPECT_EQ(health().counters().retries_succeeded, 1);
  EXPECT_EQ(health().counters().all_fallbacks(), 0);
  EXPECT_TRUE(health().calm());
  EXPECT_THAT(log_, ElementsAre(HasSubstr("done at the second try")));
  EXPECT_EQ(device.backend->allocator().bytes_in_use(),
            device.scratch ? device.scratch->bytes() : 0);
}

// A device of 1 MiB: products that do not fit.
TEST(FallbackBackOff, AfterOutOfMemoryLargeCallsStayAwayForAWhile) {
  ContextOptions options;
  options.threads = 1;
  options.cuda_emulated = true;
  options.kernel_profile = "off";
  options.cuda_memory_limit = 1 << 20;
  const auto context = *Context::Create(options);
  context->health().SetLog(nullptr);
  cuda::EmulatedRuntime& runtime = cases::RuntimeOf(*context);
  const auto asks_gpu = [&](int64_t k) {
    Tensor a = *Tensor::Allocate(context->host_allocator(), DType::kF32, {4, k});
    std::fill_n(a.As<float>(), 4 * k, 1.0f);
    const int64_t before = runtime.calls("Copy") + context->health().counters().retries;
    const auto product = MatMul(*context, {.a = a, .b = a, .bias = {}, .addend = {}, .out = {}});
    EXPECT_TRUE(product.ok()) << product.status();
    if (product.ok()) {
      EXPECT_EQ(product->As<float>()[0], static_cast<float>(k));
    }
    return runtime.calls("Copy") + context->health().counters().retries > before;
  };
  constexpr int64_t kLarge = 90'000, kSmall = 256;
  int64_t window = DeviceHealth::kFirstBackOff;
  for (int round = 0; round < 9; ++round) {
    EXPECT_TRUE(asks_gpu(kLarge)) << "round " << round;
    EXPECT_FALSE(context->health().calm());
    for (int64_t i = 0; i < window; ++i) ASSERT_FALSE(asks_gpu(kLarge)) << round << " " << i;
    if (round == 0) {
      EXPECT_TRUE(asks_gpu(kSmall)) << "small calls are not kept away";
    }
    window = std::min(2 * window, DeviceHealth::kLongestBackOff);
  }
  EXPECT_EQ(context->health().counters().fallbacks[static_cast<size_t>(FaultCause::kOutOfMemory)],
            9);
  EXPECT_EQ(context->health().counters().retries, 9);
  EXPECT_EQ(context->health().counters().retries_succeeded, 0);
  // Events are kept and logged in bounds, but all are counted.
  EXPECT_LE(context->health().events().size(), DeviceHealth::kKeptEvents);
}

TEST_F(Fallback, AfterAnErrorTheOpStaysAwayUntilItSucceeds) {
  runtime().Inject({.call = "BlasMatMul"});
  EXPECT_TRUE(UsesGpu()) << "and fails";
  for (int64_t i = 0; i < DeviceHealth::kFirstBackOff; ++i) {
    context_->trace().Enable(i == 0);
    EXPECT_FALSE(UsesGpu());
    if (i == 0) {
      EXPECT_EQ(context_->trace().records().back().decision.rule, Decision::Rule::kGpuBackOff);
    }
  }
  EXPECT_EQ(health().counters().avoided, DeviceHealth::kFirstBackOff);
  EXPECT_TRUE(UsesGpu());
  EXPECT_TRUE(health().calm());
  EXPECT_TRUE(UsesGpu());
}

TEST_F(Fallback, ALostDeviceIsNotAskedUntilRevived) {
  const Tensor there = *CopyTo(*context_, DeviceKind::kCuda, Ones(4, 64));
  runtime().Inject({.call = "Copy", .kind = Fault::Kind::kDeviceLost});
  ASSERT_TRUE(Multiply().ok());
  EXPECT_TRUE(health().lost());
  EXPECT_THAT(health().lost_by(), HasSubstr("Copy: the device is lost"));
  context_->trace().Enable(true);
  EXPECT_FALSE(UsesGpu());
  const TraceRecord& record = context_->trace().records()[0];
  EXPECT_EQ(record.decision.rule, Decision::Rule::kGpuLost);
  EXPECT_EQ(context_->trace().Summarize({})[0].reason, "the GPU is lost");
  // What lies there is gone, in words.
  const absl::Status status = AddInto(*context_, {.a = there, .b = there, .out = there});
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(Message(status), HasSubstr("add: its operands are in the memory of cuda:emulated, "
                                         "which is lost, and they with it"));
  EXPECT_EQ(health().counters().lost_devices, 1);
  // The emulated device can be opened anew; what lay on the old one may still be destroyed.
  ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
  EXPECT_TRUE(UsesGpu());
  EXPECT_EQ(health().counters().revived, 1);
}

TEST_F(Fallback, RevivesADeviceThatAnswersAgain) {
  const Tensor there = *CopyTo(*context_, DeviceKind::kCuda, Ones(4, 64));
  runtime().Inject({.call = "Synchronize", .kind = Fault::Kind::kDeviceLost});
  ASSERT_FALSE(Synchronize(*context_, DeviceKind::kCuda).ok());
  EXPECT_TRUE(health().lost());
  runtime().Heal();
  EXPECT_FALSE(UsesGpu()) << "nobody has asked yet";
  const cuda::EmulatedRuntime* const same = &runtime();
  ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
  EXPECT_EQ(&runtime(), same);
  EXPECT_TRUE(AddInto(*context_, {.a = there, .b = there, .out = there}).ok());
  EXPECT_TRUE(context_->Revive(DeviceKind::kCpu).ok());
}

// In place: the sum must not be added twice.
TEST_F(Fallback, OperandsInGpuMemoryAreFetchedAndPutBack) {
  const Tensor there = *CopyTo(*context_, DeviceKind::kCuda, Ones(4, 64)), host = Ones(4, 64);
  runtime().Inject({.call = "Launch"});
  ASSERT_TRUE(AddInto(*context_, {.a = there, .b = there, .out = there}).ok());
  EXPECT_EQ(health().counters().resident_fallbacks, 1);
  ASSERT_TRUE(Copy(*context_, there, host).ok());
  ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
  EXPECT_EQ(host.As<float>()[255], 2.0f);
  // They are there: the GPU is asked again at once.
  const int64_t before = runtime().calls("Launch");
  ASSERT_TRUE(AddInto(*context_, {.a = there, .b = there, .out = there}).ok());
  EXPECT_EQ(runtime().calls("Launch"), before + 1);
}

TEST_F(Fallback, NothingFallsBackWhileAGraphIsRecorded) {
  const Tensor there = *CopyTo(*context_, DeviceKind::kCuda, Ones(4, 64));
  const auto add = [&] { return AddInto(*context_, {.a = there, .b = there, .out = there}); };
  ASSERT_TRUE(add().ok());
  for (const char* call : {"BeginCapture", "Launch", "EndCapture"}) {
    runtime().Inject({.call = call});
    EXPECT_FALSE(Graph::Capture(*context_, DeviceKind::kCuda, add).ok()) << call;
  }
  EXPECT_EQ(health().counters().all_fallbacks(), 0);
  auto graph = Graph::Capture(*context_, DeviceKind::kCuda, add);
  ASSERT_TRUE(graph.ok()) << graph.status();
  ASSERT_TRUE(graph->Launch().ok());
  EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
}

TEST(DeviceHealthLog, IsBounded) {
  DeviceHealth health;
  std::vector<std::string> lines;
  health.SetLog([&](std::string_view line) { lines.emplace_back(line); });
  for (int i = 0; i < 1000; ++i) {
    health.Add({"add", cases::kEmulated, FaultCause::kError, FaultRemedy::kRanOnCpu, "Launch: x"});
  }
  EXPECT_EQ(lines.size(), DeviceHealth::kLoggedEvents + 1u);
  EXPECT_THAT(lines.back(), HasSubstr("not logged"));
  EXPECT_EQ(health.events().size(), DeviceHealth::kKeptEvents);
  EXPECT_EQ(health.events().back().number, 1000);
  EXPECT_EQ(health.counters().all_fallbacks(), 1000);
}

TEST(EmulatedFaults, AreAskedForByName) {
  const auto fault = cuda::ParseFault("oom@Allocate:3x2");
  ASSERT_TRUE(fault.ok()) << fault.status();
  EXPECT_EQ(fault->call, "Allocate");
  EXPECT_EQ(fault->ordinal, 3);
  EXPECT_EQ(fault->times, 2);
  EXPECT_EQ(fault->kind, Fault::Kind::kOutOfMemory);
  EXPECT_EQ(cuda::ParseFault("lost@any:1")->call, "");
  for (const char* bad :
       {"", "lost", "lost@Launch", "lost@Launch:", "lost@Launch:0", "lost@Lunch:1", "dead@Launch:1",
        "lost@Launch:1x0", "lost@Launch:1x", ":@"}) {
    EXPECT_THAT(Message(cuda::ParseFault(bad).status()), HasSubstr("KIND@CALL:ORDINAL")) << bad;
  }
  ContextOptions options;
  options.threads = 1;
  options.cuda_fault = "error@Launch:1x2";
  {
    const WithoutGpu unless_asked_for;
    EXPECT_THAT(Message(Context::Create(options).status()),
                HasSubstr("expected the emulated device"));
  }
  options.cuda_emulated = true;
  options.kernel_profile = "off";
  const auto context = Context::Create(options);
  ASSERT_TRUE(context.ok()) << context.status();
  (*context)->health().SetLog(nullptr);
  Tensor there = *AllocateOn(**context, DeviceKind::kCuda, DType::kF32, {4, 4});
  for (int i = 1; i <= 3; ++i) {
    ASSERT_TRUE(AddInto(**context, {.a = there, .b = there, .out = there}).ok());
    EXPECT_EQ((*context)->health().counters().all_faults(), std::min(i, 2));
  }
}

}  // namespace
}  // namespace tandem
