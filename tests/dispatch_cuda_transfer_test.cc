// Ops whose operands are on the host, run on the (emulated) CUDA device: results, and what is left
// behind when a call of the runtime fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/caching_allocator.h"
#include "cuda/runtime/emulated_runtime.h"
#include "dispatch/mask_cache.h"
#include "dispatch/ops.h"
#include "dispatch/run.h"
#include "dispatch/streaming_mask.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

// Runs a case on host operands by the public path. The problem, or an empty string; `unchanged`
// says whether the outputs hold what they did.
template <typename Case>
absl::Status RunOnHostOperands(Context& context, const Prepared<Case>& prepared,
                               std::string& problem, bool& unchanged) {
  ContextDevice& cpu = *context.device(DeviceKind::kCpu);
  TANDEM_ASSIGN_OR_RETURN(DeviceOperands operands,
                          DeviceOperands::Upload(prepared.operands, *cpu.backend, *cpu.stream));
  const Views& views = operands.views();
  const absl::Status status = RunOp(context, prepared.c.Bind(views));
  TANDEM_ASSIGN_OR_RETURN(const auto damage, operands.Download(*cpu.backend, *cpu.stream));
  problem = damage.value_or("");
  unchanged = operands.OutputHash() == operands.InitialHash();
  Outcome outcome;
  for (const Expectation& expectation : prepared.expectations) {
    if (!status.ok() || !problem.empty()) break;
    problem = Compare(expectation, operands.Result(expectation.operand), outcome);
  }
  return status;
}

TEST(CudaTransfer, EveryOpOfTheShortGrid) {
  const auto context = EmulatedContext(/*forced=*/true);
  int64_t ran = 0;
  ForEachCaseType([&]<typename Case>() {
    for (const Case& c : Case::Grid(GridSize::kShort)) {
      if (ExpectedCode(c) != absl::StatusCode::kOk) continue;
      const auto prepared = Prepare(c);
      ASSERT_TRUE(prepared.ok()) << prepared.status();
      std::string problem;
      bool unchanged = false;
      const absl::Status status = RunOnHostOperands(*context, *prepared, problem, unchanged);
      if (absl::IsUnimplemented(status)) {  // no CUDA kernel takes it
        EXPECT_TRUE(unchanged) << CaseText(c);
        continue;
      }
      EXPECT_TRUE(status.ok()) << CaseText(c) << ": " << status;
      EXPECT_EQ(problem, "") << CaseText(c);
      ASSERT_EQ(InUse(*context), 0) << CaseText(c);
      ++ran;
    }
  });
  EXPECT_GT(ran, 100);
}

TEST(CudaFaults, EveryCallOfEveryOpMayFail) {
  const auto context = EmulatedContext(/*forced=*/true);
  cuda::EmulatedRuntime& runtime = RuntimeOf(*context);
  auto& allocator = static_cast<cuda::CachingAllocator&>(
      context->device(DeviceKind::kCuda)->backend->allocator());
  ForEachCaseType([&]<typename Case>() {
    for (const Prepared<Case>& prepared : FaultCases<Case>()) {
      for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                              cuda::Fault::Kind::kDeviceLost}) {
        int64_t failures = 0;
        for (int64_t ordinal = 1;; ++ordinal) {
          SCOPED_TRACE(absl::StrCat(CaseText(prepared.c), ", call ", ordinal));
          // Nothing kept, so that allocations and the making of plans reach the runtime.
          context->device(DeviceKind::kCuda)->landing.reset();
          ResetBlas(*context);
          ASSERT_TRUE(allocator.Flush().ok());
          const cuda::EmulatedStats before = runtime.stats();
          runtime.Inject({.ordinal = ordinal, .kind = kind});
          std::string problem;
          bool unchanged = false;
          const absl::Status status = RunOnHostOperands(*context, prepared, problem, unchanged);
          const bool happened = runtime.fault_happened();
          runtime.Heal();
          ASSERT_EQ(problem, "");
          if (!status.ok()) {
            ++failures;
            ASSERT_TRUE(happened) << status;
            ASSERT_TRUE(unchanged) << "a failed call has written: " << status;
          }
          ASSERT_EQ(InUse(*context), 0);
          context->device(DeviceKind::kCuda)->landing.reset();
          ResetBlas(*context);
          ASSERT_TRUE(allocator.Flush().ok());
          cuda::EmulatedStats after = runtime.stats();
          // The workspace may have grown: it is the context's.
          after.allocations = before.allocations;
          after.allocated_bytes = before.allocated_bytes;
          ASSERT_TRUE(after == before) << "something was left behind";
          if (!happened) {
            ASSERT_TRUE(status.ok()) << status;
            break;
          }
          ASSERT_LT(ordinal, 1000);
        }
        EXPECT_GE(failures, 3) << CaseText(prepared.c);  // at least: allocate, launch, copy back
      }
    }
  });
}

// Addresses that nobody can read: planning looks at shapes only.
TEST(CudaOperands, HostCodeReadsNoDeviceMemory) {
  const auto context = EmulatedContext(/*forced=*/false);
  KernelContext kernel_context;
  kernel_context.stream = context->device(DeviceKind::kCuda)->stream.get();
  int64_t accepted = 0;
  ForEachCaseType([&]<typename Case>() {
    for (const Case& c : Case::Grid(GridSize::kShort)) {
      const Operands operands = c.MakeOperands();
      Views views;
      int64_t address = int64_t{1} << 20;
      for (const Operand& operand : operands.all()) {
        TensorView view = operand.At(reinterpret_cast<void*>(address));
        view.device = kEmulated;
        address += static_cast<int64_t>(operand.bytes.size()) + 4096;
        address -= address % 4096;
        views.Add(operand.name, view);
      }
      const auto args = c.Bind(views);
      const absl::Status valid = Validate(args);
      EXPECT_TRUE(valid.ok()) << CaseText(c) << ": " << valid;
      EXPECT_EQ(FactsOf(args).operands, kEmulated) << CaseText(c);
      const auto plan = MakePlan(*context, args, FactsOf(args));
      EXPECT_TRUE(plan.ok() || absl::IsUnimplemented(plan.status()))
          << CaseText(c) << ": " << plan.status();
      if (!plan.ok()) continue;
      EXPECT_GE(plan->kernel->workspace_bytes(kernel_context, args), 0);
      ++accepted;
    }
  });
  EXPECT_GT(accepted, 100);
}

Tensor Ones(Context& context, const Shape& shape) {
  Tensor tensor = *Tensor::Allocate(context.host_allocator(), DType::kF32, shape);
  std::fill_n(tensor.As<float>(), tensor.view().num_elements(), 1.0f);
  return tensor;
}

TEST(CudaPolicy, HostOperandsGoToTheDeviceAboveTheThreshold) {
  const auto context = EmulatedContext(/*forced=*/false);
  context->trace().Enable(true);
  const Tensor a = Ones(*context, {4, 40}), small = Ones(*context, {1, 40}),
               b = Ones(*context, {16, 40});
  const auto large = MatMul(*context, {.a = a, .b = b, .bias = {}, .addend = {}, .out = {}});
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_EQ(large->view().device, Device());
  EXPECT_EQ(large->As<float>()[63], 40.0f);
  ASSERT_TRUE(MatMul(*context, {.a = small, .b = b, .bias = {}, .addend = {}, .out = {}}).ok());
  ASSERT_EQ(context->trace().records().size(), 2u);
  const TraceRecord& record = context->trace().records()[0];
  EXPECT_EQ(Name(record.device), "cuda:emulated");
  EXPECT_EQ(record.decision.rule, Decision::Rule::kAboveThreshold);
  EXPECT_EQ(record.moved_bytes, (4 * 40 + 16 * 40 + 4 * 16) * 4);
  EXPECT_EQ(Name(context->trace().records()[1].device), "cpu");
  EXPECT_EQ(context->trace().records()[1].moved_bytes, 0);
}

TEST(CudaPolicy, OperandsOnAnotherCudaDeviceAreRefused) {
  const auto context = EmulatedContext(/*forced=*/false);
  const Tensor a = Ones(*context, {2, 8});
  TensorView there = a.view();
  there.device = {DeviceKind::kCuda, 0};
  const absl::Status status = AddInto(*context, {.a = there, .b = there, .out = there});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("cuda:0"));
  EXPECT_FALSE(AddInto(*context, {.a = there, .b = a, .out = a}).ok());
  EXPECT_EQ(PackWeights(*context, there).status().code(), absl::StatusCode::kInvalidArgument);
  there.device = kEmulated;
  EXPECT_EQ(PackWeights(*context, there).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(CudaPolicy, ForcedCpuFetchesOperands) {
  ContextOptions options;
  options.cuda_emulated = true;
  options.device = DeviceKind::kCpu;
  const auto context = *Context::Create(options);
  ContextDevice& cuda = *context->device(DeviceKind::kCuda);
  const Tensor host = Ones(*context, {2, 8});
  const Tensor there = *Tensor::Allocate(cuda.backend->allocator(), DType::kF32, {2, 8});
  ASSERT_TRUE(cuda.backend->Copy(*cuda.stream, there.view().data, host.view().data, 64).ok());
  const TensorView left = Slice(there, 1, 0, 4);  // the right half must survive
  ASSERT_TRUE(AddInto(*context, {.a = left, .b = left, .out = left}).ok());
  ASSERT_TRUE(cuda.backend->Copy(*cuda.stream, host.view().data, there.view().data, 64).ok());
  for (int i = 0; i < 16; ++i) EXPECT_EQ(host.As<float>()[i], i % 8 < 4 ? 2.0f : 1.0f);
}

TEST(CudaMasks, CacheAndStreamingMaskLiveOnTheDevice) {
  const auto context = EmulatedContext(/*forced=*/false);
  ContextDevice& cuda = *context->device(DeviceKind::kCuda);
  const MaskRule rule = {.q_len = 3, .kv_len = 5};
  MaskCache cache;
  const auto mask = cache.Get(*context, rule, DType::kBool, kEmulated);
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_EQ((*mask)->view().device, kEmulated);
  const auto streaming = StreamingMask::Create(*context, rule, DType::kBool, 8, 16, kEmulated);
  ASSERT_TRUE(streaming.ok()) << streaming.status();
  EXPECT_EQ(streaming->view().device, kEmulated);
  const Tensor expected = *Mask(*context, rule, DType::kBool);
  std::vector<uint8_t> got(15);
  ASSERT_TRUE(cuda.backend->Copy(*cuda.stream, got.data(), (*mask)->view().data, 15).ok());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i], static_cast<const uint8_t*>(expected.view().data)[i]) << i;
  }
}

TEST(CudaMemory, RunningOutIsAStatusAndTheContextGoesOn) {
  ContextOptions options;
  options.cuda_emulated = true;
  options.cuda_memory_limit = 1 << 20;
  options.device = DeviceKind::kCuda;
  const auto context = *Context::Create(options);
  const Tensor large = Ones(*context, {1024, 512}), small = Ones(*context, {4, 4});
  const absl::Status status = AddInto(*context, {.a = large, .b = large, .out = large});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(large.As<float>()[0], 1.0f);
  EXPECT_EQ(InUse(*context), 0);
  ASSERT_TRUE(AddInto(*context, {.a = small, .b = small, .out = small}).ok());
  EXPECT_EQ(small.As<float>()[15], 2.0f);
}

}  // namespace
}  // namespace tandem::cases
