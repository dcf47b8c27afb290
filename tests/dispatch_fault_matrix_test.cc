// Every call of the runtime that an op makes on the GPU, failing in turn in every way, for every
// op, with its operands in host memory and in GPU memory: the call survives, with the right result,
// nothing is left behind, and the context goes on. Where the operands are lost with the device the
// call says so, and the context goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "cuda/caching_allocator.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "dispatch/run.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_context.h"
#include "tests/fault_matrix.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

// The first of the grid; products by the library; kernels that fill counters, that use bulk copies.
template <typename Case>
std::vector<Prepared<Case>> MatrixCases() {
  std::vector<Prepared<Case>> chosen = FaultCases<Case>();
  if (chosen.size() > 1) chosen.erase(chosen.begin() + 1);
  if constexpr (std::is_same_v<Case, AttentionCase>) {
    for (const char* text :
         {"attention q_heads=4 kv_heads=2 q_len=1 kv_len=200 head_dim=64 kv_dtype=f16",
          "attention q_heads=2 kv_heads=1 q_len=40 kv_len=70 head_dim=64 q_dtype=f16 "
          "kv_dtype=f16"}) {
      const auto c = ParseCase<AttentionCase>(text);
      EXPECT_TRUE(c.ok()) << c.status();
      chosen.push_back(*Prepare(*c));
    }
  }
  return chosen;
}

class OpFaults {
 public:
  explicit OpFaults(bool resident) : resident_(resident) {
    context_->health().SetLog(nullptr);
    // A second stream: memory that is released waits for events on both.
    stream_ = *device().backend->CreateStream();
  }

  template <typename Case>
  void EveryCallFails(const Prepared<Case>& prepared) {
    // What it does undisturbed.
    Settle();
    std::map<std::string, int64_t> calls;
    for (const std::string_view name : cuda::kFaultCalls) {
      calls[std::string(name)] = -runtime().calls(std::string(name));
    }
    std::string problem;
    const auto undisturbed = RunIt(prepared, std::nullopt, problem);
    if (!undisturbed) return;  // no CUDA kernel takes it
    ASSERT_TRUE(undisturbed->ok()) << *undisturbed;
    ASSERT_EQ(problem, "");
    // Of these only the last step of cleaning up is not the op's.
    for (const std::string_view name : cuda::kFaultCalls) {
      calls[std::string(name)] += runtime().calls(std::string(name));
    }
    for (const auto& [name, count] : calls) {
      // Calls that come again and again (is the stream done?): the first ones and the last.
      const int64_t most = kSanitized ? 1 : 4;
      for (int64_t ordinal = 1; ordinal <= count; ++ordinal) {
        if (ordinal > most && ordinal < count) continue;
        for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                                cuda::Fault::Kind::kDeviceLost}) {
          SCOPED_TRACE(
              absl::StrCat(CaseText(prepared.c), ", ", Name(kind), " at ", name, " ", ordinal));
          const bool survived =
              Survives(prepared, {.call = name, .ordinal = ordinal, .kind = kind});
          if (happened_) {
            matrix_.Count(std::string(Name(Case::Args::kOp)), name, survived);
          }
          EXPECT_TRUE(survived);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }

  const FaultMatrix& matrix() const { return matrix_; }
  const FaultCounters& counters() const { return context_->health().counters(); }

 private:
  ContextDevice& device() { return *context_->device(DeviceKind::kCuda); }
  cuda::EmulatedRuntime& runtime() { return RuntimeOf(*context_); }

  // Nothing kept, so that everything reaches the runtime.
  void Settle() {
    device().stream->Synchronize().IgnoreError();
    device().scratch.reset();
    device().landing.reset();
    ResetBlas(*context_);
    ASSERT_TRUE(static_cast<cuda::CachingAllocator&>(device().backend->allocator()).Flush().ok());
  }

  // Runs the case on the GPU, by a plan for it; nullopt if no kernel there takes it.
  template <typename Case>
  std::optional<absl::Status> RunIt(const Prepared<Case>& prepared,
                                    const std::optional<cuda::Fault>& fault, std::string& problem) {
    ContextDevice& home = resident_ ? device() : *context_->device(DeviceKind::kCpu);
    auto operands = DeviceOperands::Upload(prepared.operands, *home.backend, *home.stream);
    EXPECT_TRUE(operands.ok()) << operands.status();
    EXPECT_TRUE(home.stream->Synchronize().ok());
    const auto args = prepared.c.Bind(operands->views());
    const OpFacts facts = FactsOf(args);
    if (fault) runtime().Inject(*fault);
    auto plan = PlanOn(*context_, args, facts,
                       {DeviceKind::kCuda, resident_ ? Decision::Rule::kFollowsOperands
                                                     : Decision::Rule::kAboveThreshold});
    happened_ = false;
    if (!plan.ok()) {
      EXPECT_FALSE(fault) << plan.status();
      return std::nullopt;
    }
    const absl::Status status = RunPlan(*context_, *plan, args, facts);
    happened_ = fault && runtime().fault_happened();
    const bool lost = context_->health().lost();
    runtime().Heal();
    EXPECT_TRUE(device().stream->Synchronize().ok());
    const auto damage = operands->Download(*home.backend, *home.stream);
    EXPECT_TRUE(damage.ok()) << damage.status();
    problem = damage->value_or("");
    Outcome outcome;
    for (const Expectation& expectation : prepared.expectations) {
      if (!status.ok() || !problem.empty()) break;
      problem = Compare(expectation, operands->Result(expectation.operand), outcome);
    }
    if (!status.ok() && !lost && operands->OutputHash() != operands->InitialHash()) {
      problem = "a failed call has written";
    }
    if (lost) {
      ExpectTheCpuInstead();
      EXPECT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
    }
    return status;
  }

  // Lost, as far as the context knows: large products with operands in host memory stay there.
  void ExpectTheCpuInstead() {
    const Tensor a = *Tensor::Allocate(context_->host_allocator(), DType::kF32, {4, 64});
    std::fill_n(a.As<float>(), 256, 1.0f);
    const int64_t before = counters().avoided;
    const int64_t launches = runtime().calls("Launch") + runtime().calls("BlasMatMul");
    const auto product = MatMul(*context_, {.a = a, .b = a, .bias = {}, .addend = {}, .out = {}});
    ASSERT_TRUE(product.ok()) << product.status();
    EXPECT_EQ(product->As<float>()[15], 64.0f);
    EXPECT_EQ(counters().avoided, before + 1);
    EXPECT_EQ(runtime().calls("Launch") + runtime().calls("BlasMatMul"), launches);
  }

  template <typename Case>
  bool Survives(const Prepared<Case>& prepared, const cuda::Fault& fault) {
    const bool failed_before = testing::Test::HasFailure();
    Settle();
    const cuda::EmulatedStats before = runtime().stats();
    const int64_t events = counters().all_faults();
    std::string problem;
    const absl::Status status = RunIt(prepared, fault, problem).value();
    const bool happened = happened_;
    EXPECT_EQ(problem, "");
    const bool lost = fault.kind == cuda::Fault::Kind::kDeviceLost;
    if (resident_ && lost && !status.ok()) {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(Message(status), HasSubstr("is lost"));
    } else {
      EXPECT_TRUE(status.ok()) << status;
    }
    if (!status.ok()) {
      EXPECT_GT(counters().all_faults(), events);
    }
    Settle();
    EXPECT_EQ(runtime().stats(), before) << "something was left behind";
    EXPECT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
    happened_ = happened;
    if (fault.ordinal > 1) return failed_before || !testing::Test::HasFailure();
    // And once more, on the GPU.
    const int64_t work = runtime().calls("Launch") + runtime().calls("BlasMatMul");
    const absl::Status again = RunIt(prepared, std::nullopt, problem).value();
    EXPECT_TRUE(again.ok()) << again;
    EXPECT_EQ(problem, "");
    EXPECT_GT(runtime().calls("Launch") + runtime().calls("BlasMatMul"), work);
    EXPECT_TRUE(context_->health().calm());
    happened_ = happened;
    return failed_before || !testing::Test::HasFailure();
  }

  const bool resident_;
  const std::unique_ptr<Context> context_ = EmulatedContext(/*forced=*/false);
  std::unique_ptr<Stream> stream_;
  FaultMatrix matrix_;
  bool happened_ = false;
};

void EveryCallOfEveryOp(bool resident, const std::string& title) {
  OpFaults faults(resident);
  ForEachCaseType([&]<typename Case>() {
    for (const Prepared<Case>& prepared : MatrixCases<Case>()) {
      faults.EveryCallFails(prepared);
      if (testing::Test::HasFatalFailure()) return;
    }
  });
  EXPECT_EQ(faults.matrix().survived(), faults.matrix().injected());
  for (const char* call : {"Allocate", "Copy", "Fill", "Launch", "Synchronize", "EncodeTensorMap",
                           "BlasCreate", "BlasPlan", "BlasMatMul"}) {
    // Where the operands are nothing is copied (but lists: kv_append), nor waited for.
    const std::string_view name = call;
    if (resident && (name == "Copy" || name == "Synchronize")) continue;
    EXPECT_TRUE(faults.matrix().calls().contains(call)) << call;
  }
  const FaultCounters& counters = faults.counters();
  for (const int64_t count : counters.faults) EXPECT_GT(count, 20);
  EXPECT_GT(counters.fallbacks[0], 20);
  // At the second try memory is there: the injected fault happens once.
  EXPECT_GT(counters.retries_succeeded, 20);
  EXPECT_EQ(counters.resident_fallbacks > 0, resident);
  EXPECT_EQ(counters.failed > 0, resident);
  faults.matrix().Publish("ops.md", title);
}

TEST(FaultMatrix, OperandsInHostMemory) {
  EveryCallOfEveryOp(/*resident=*/false, "Ops, operands in host memory");
}
TEST(FaultMatrix, OperandsInGpuMemory) {
  EveryCallOfEveryOp(/*resident=*/true, "Ops, operands in GPU memory");
}

}  // namespace
}  // namespace tandem::cases
