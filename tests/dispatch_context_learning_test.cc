// What a context tells the scheduler of itself, and learns from its calls: corrections of predicted
// times, the GPU's queue, its free memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "dispatch/copy.h"
#include "dispatch/facts.h"
#include "dispatch/ops.h"
#include "tests/allocation_counter.h"
#include "tests/emulated_context.h"
#include "tests/made_up_costs.h"

namespace tandem::cases {
namespace {

constexpr int64_t kSize = 48;
using Rule = Decision::Rule;

// A machine on which products of f32 take so long.
std::shared_ptr<const CostModel> Model(double cpu_seconds, double gpu_seconds) {
  return ConstantModel({OpKind::kMatMul}, cpu_seconds, gpu_seconds);
}

class LearningTest : public testing::Test {
 protected:
  void Start(std::shared_ptr<const CostModel> model, ContextOptions options = {}) {
    a_ = b_ = out_ = {};  // of the context that goes
    context_ = QuietContext(std::move(model), std::move(options));
    for (const DeviceKind kind : kDeviceKinds) {
      Tensor host = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, {kSize, kSize}).value();
      std::fill_n(host.As<float>(), kSize * kSize, 1.0f);
      for (Tensor* tensor : {&a_[kind], &b_[kind], &out_[kind]}) {
        *tensor = CopyTo(*context_, kind, host).value();
      }
    }
    ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
  }
  MatMulArgs Args(DeviceKind home) {
    MatMulArgs args;
    args.a = a_[home];
    args.b = b_[home];
    args.out = out_[home];
    return args;
  }
  void Run(DeviceKind home) {
    const absl::Status status = MatMulInto(*context_, Args(home));
    ASSERT_TRUE(status.ok()) << status;
  }
  DecisionInputs Inputs(DeviceKind home = DeviceKind::kCpu) {
    return context_->InputsOf(FactsOf(Args(home)));
  }
  Decision Decide(DeviceKind home = DeviceKind::kCpu) {
    return context_->Decide(FactsOf(Args(home)));
  }
  double Factor(DeviceKind device, bool moved) {
    const int table = context_->cost_model()->TableOf(FactsOf(Args(DeviceKind::kCpu)), device);
    return context_->cost_correction().Factor(CostCorrection::SlotOf(table, moved));
  }

  std::unique_ptr<Context> context_;
  PerDevice<Tensor> a_, b_, out_;
};

// Said to take a nanosecond each, calls take longer: predictions follow, as fast as they may.
TEST_F(LearningTest, CallsCorrectWhatIsPredicted) {
  Start(Model(1e-9, 1.0));
  double expected = 1.0;
  for (int i = 0; i < 20; ++i) {
    EXPECT_DOUBLE_EQ(Factor(DeviceKind::kCpu, false), expected);
    EXPECT_NEAR(Decide().predicted[DeviceKind::kCpu].call_seconds, 1e-9 * expected, 1e-15);
    Run(DeviceKind::kCpu);
    expected = std::min(expected * CostCorrection::kMaxStep, CostCorrection::kMaxCorrection);
  }
  EXPECT_EQ(Factor(DeviceKind::kCpu, false), CostCorrection::kMaxCorrection);
  EXPECT_EQ(Factor(DeviceKind::kCpu, true), 1.0);
  EXPECT_EQ(Factor(DeviceKind::kCuda, false), 1.0);

  // The GPU, with operands that were moved: another number.
  Start(Model(1000.0, 1e-9));
  Run(DeviceKind::kCpu);
  EXPECT_EQ(Factor(DeviceKind::kCuda, true), CostCorrection::kMaxStep);
  EXPECT_EQ(Factor(DeviceKind::kCuda, false), 1.0);
  EXPECT_EQ(Factor(DeviceKind::kCpu, false), 1.0);
  // Said to take longer than they do, they come down.
  Start(Model(1000.0, 2000.0));
  Run(DeviceKind::kCpu);
  EXPECT_LT(Factor(DeviceKind::kCpu, false), 0.81);
}

// A device that turns out to be slow loses its calls; where both are found out to be far slower
// than predicted, the order is again what was predicted.
TEST_F(LearningTest, DecisionsFollowWhatIsLearned) {
  Start(Model(1e-9, 4e-9));
  EXPECT_EQ(Decide().device, DeviceKind::kCpu);
  bool gpu_tried = false;
  for (int i = 0; i < 60; ++i) {
    gpu_tried = gpu_tried || Decide().device == DeviceKind::kCuda;
    Run(DeviceKind::kCpu);
  }
  EXPECT_TRUE(gpu_tried);
  EXPECT_EQ(Factor(DeviceKind::kCpu, false), CostCorrection::kMaxCorrection);
  EXPECT_GE(Factor(DeviceKind::kCuda, true), 3.0);
  EXPECT_EQ(Decide().device, DeviceKind::kCpu);
}

TEST_F(LearningTest, NothingIsLearnedWhereNothingIsPredictedOrOnRequest) {
  for (const int variant : {0, 1, 2, 3}) {
    SCOPED_TRACE(variant);
    ContextOptions options;
    if (variant == 0) options.policy.correct_online = 0;
    if (variant == 1) options.policy.kind = PolicyKind::kFixed;
    if (variant == 2) options.device = DeviceKind::kCpu;
    Start(Model(1e-9, 1.0), options);
    if (variant == 3) {
      // A call that met a fault says nothing about others.
      Start(Model(1.0, 1e-9));
      RuntimeOf(*context_).Inject({.call = "Copy"});
    }
    Run(DeviceKind::kCpu);
    for (const DeviceKind kind : kDeviceKinds) {
      EXPECT_EQ(Factor(kind, false), 1.0);
      EXPECT_EQ(Factor(kind, true), 1.0);
    }
    if (variant == 3) {
      EXPECT_EQ(context_->health().counters().all_fallbacks(), 1);
    }
  }
}

// Work that was given to the GPU and not waited for is time that the next call there waits.
TEST_F(LearningTest, QueuedWorkIsAFact) {
  Start(Model(20.0, 5.0));
  EXPECT_EQ(Inputs().queued_seconds[DeviceKind::kCuda], 0.0);
  Run(DeviceKind::kCuda);  // operands there: queued
  const double one = Inputs().queued_seconds[DeviceKind::kCuda];
  EXPECT_GT(one, 2.0);
  EXPECT_LE(one, 5.0);
  Run(DeviceKind::kCuda);
  EXPECT_GT(Inputs().queued_seconds[DeviceKind::kCuda], one + 2.0);
  EXPECT_EQ(Inputs().queued_seconds[DeviceKind::kCpu], 0.0);
  EXPECT_EQ(Decide().device, DeviceKind::kCuda);  // 5 s and 10 to wait: still less than 20
  for (int i = 0; i < 3; ++i) Run(DeviceKind::kCuda);
  const Decision decision = Decide();
  EXPECT_EQ(decision.device, DeviceKind::kCpu);
  EXPECT_GT(decision.predicted[DeviceKind::kCuda].wait_seconds, 15.0);
  // The CPU's calls leave no queue, nor do those that are waited for.
  Start(Model(1.0, 50.0));
  Run(DeviceKind::kCpu);
  EXPECT_EQ(Inputs().queued_seconds[DeviceKind::kCuda], 0.0);
}

// What a call would need on the GPU must be free there.
TEST_F(LearningTest, FreeMemoryIsAFact) {
  constexpr int64_t kLimit = int64_t{1} << 20;
  ContextOptions options;
  options.cuda_memory_limit = kLimit;
  Start(Model(1.0, 1e-3), options);
  Allocator& gpu = context_->device(DeviceKind::kCuda)->backend->allocator();
  EXPECT_EQ(Inputs().free_bytes[DeviceKind::kCuda], kLimit - gpu.bytes_in_use());
  EXPECT_EQ(Decide().device, DeviceKind::kCuda);
  const int64_t free = Inputs().free_bytes[DeviceKind::kCuda];
  {
    std::vector<std::shared_ptr<Buffer>> taken;
    while (Inputs().free_bytes[DeviceKind::kCuda] >= 3 * kSize * kSize * 4) {
      auto buffer = gpu.Allocate(4096);
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      taken.push_back(*std::move(buffer));
    }
    const Decision decision = Decide();
    EXPECT_EQ(decision.device, DeviceKind::kCpu);
    EXPECT_EQ(decision.rule, Rule::kNoMemory);
    Run(DeviceKind::kCpu);
    EXPECT_EQ(context_->health().counters().all_faults(), 0);
  }
  EXPECT_EQ(Inputs().free_bytes[DeviceKind::kCuda], free);
  EXPECT_EQ(Decide().device, DeviceKind::kCuda);
}

// Deciding, and learning, happen at every call.
TEST_F(LearningTest, RepeatedDecisionsAllocateNothing) {
  Start(Model(1e-9, 1.0));
  const MatMulArgs args = Args(DeviceKind::kCpu);
  Decision decision = context_->Decide(FactsOf(args));
  const int64_t before = AllocationCount();
  for (int i = 0; i < 1000; ++i) {
    decision = context_->Decide(FactsOf(args));
    context_->Finished(decision, 1e-6);
    context_->Queued(decision);
  }
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_EQ(decision.device, DeviceKind::kCpu);
}

}  // namespace
}  // namespace tandem::cases
