// What the calls of placed models take corrects what is predicted of such calls, and so the next
// placement: by a virtual clock on simulated machines, and as a session on two devices does it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "dispatch/cost_correction.h"
#include "model/decoder.h"
#include "model/decoder_plan.h"
#include "tests/emulated_context.h"
#include "tests/made_up_costs.h"
#include "tests/model_shapes.h"
#include "tests/random_model.h"
#include "tests/simulated_machine.h"

namespace tandem {
namespace {

using simulated::Machine;
using simulated::Machines;
using simulated::MachineSpec;

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

// ---- By a virtual clock ----

// A decoder of 8B in a GPU's memory that holds half of it.
class PlacedDecoder {
 public:
  explicit PlacedDecoder(const MachineSpec& spec)
      : machine_(spec, 5),
        model_(machine_.Calibrate()),
        correction_(model_.num_tables()),
        truth_(cases::TruthOf(machine_)),
        decoder_(ModelShapes()[4], DType::kQ4_K),
        inputs_{.config = decoder_.config, .weights = decoder_.weights} {
    inputs_.session.capacity = 4096;
    inputs_.packed = [](DType type) { return IsBlockQuantized(type); };
    const auto everything = DecoderPlacement::Everything(kGpu, inputs_.config.layers);
    memory_.gpu_bytes = EvaluateDecoder(inputs_, nullptr, memory_, everything).gpu_bytes / 2;
    // What the parts call on each device, as the planner counts it.
    DecoderMachine spy = TrueMachine();
    spy.call_seconds = [this](const OpFacts& facts, DeviceKind device) {
      calls_[device].push_back(facts);
      calls_[device].back().at[Other(device)] = {};  // weights are there
      return std::optional(1.0);
    };
    EvaluateDecoder(inputs_, &spy, memory_, everything);
  }

  Machine& machine() { return machine_; }
  DecoderPlan Plan() const {
    const DecoderMachine learned = DecoderMachine::Of(model_, &correction_);
    return PlanDecoder(inputs_, &learned, memory_).value();
  }
  DecoderPlan BestPlan() const {
    const DecoderMachine truth = TrueMachine();
    return PlanDecoder(inputs_, &truth, memory_).value();
  }
  double TrueSeconds(const DecoderPlan& plan) const {
    const DecoderMachine truth = TrueMachine();
    return EvaluateDecoder(inputs_, &truth, memory_, plan.placement).seconds;
  }
  // Each call of the CPU by itself, those of the GPU behind each other.
  void RunTokens(int tokens) {
    for (int i = 0; i < tokens; ++i) {
      for (const OpFacts& facts : calls_[kCpu]) {
        const Prediction prediction = Predict(facts, kCpu, model_, &correction_);
        Learn(correction_, prediction, machine_.Elapse(machine_.CallSeconds(facts, kCpu)));
      }
      QueuedWork work;
      work.Clear();
      double taken = 0.0;
      for (const OpFacts& facts : calls_[kGpu]) {
        const Prediction prediction = Predict(facts, kGpu, model_, &correction_);
        work.Add(prediction.slot, prediction.call_seconds, model_.LaunchSeconds(kGpu));
        taken += machine_.CallSeconds(facts, kGpu) - machine_.spec().gpu.launch_seconds;
      }
      work.Teach(correction_, machine_.Elapse(taken));
    }
  }

 private:
  DecoderMachine TrueMachine() const {
    DecoderMachine machine;
    machine.call_seconds = truth_.call;
    machine.copy_seconds = truth_.copy;
    machine.launch_seconds[kCpu] = machine_.spec().cpu.launch_seconds;
    machine.launch_seconds[kGpu] = machine_.spec().gpu.launch_seconds;
    machine.shared_bytes_per_second = truth_.shared_bytes_per_second;
    return machine;
  }

  Machine machine_;
  const CostModel model_;
  CostCorrection correction_;
  const SplitCosts truth_;
  const ShapedModel decoder_;
  DecoderPlanInputs inputs_;
  DecoderMemory memory_;
  PerDevice<std::vector<OpFacts>> calls_;
};

// A device becomes three times slower while the model runs: within ten tokens what is predicted of
// it is right again, and the next placement is the best one or nearly so.
TEST(PlacedLearning, TheNextPlacementFollowsADeviceThatBecomesSlower) {
  int moved = 0;
  for (const MachineSpec& spec : Machines()) {
    for (const DeviceKind slow : kDeviceKinds) {
      SCOPED_TRACE(testing::Message() << spec.name << ", slow " << Name(slow));
      PlacedDecoder decoder(spec);
      decoder.RunTokens(10);
      const DecoderPlan before = decoder.Plan();
      EXPECT_NEAR(before.seconds / decoder.TrueSeconds(before), 1.0, 0.15);
      decoder.machine().Slow(slow, 3.0);
      const double unlearned = decoder.TrueSeconds(decoder.Plan()) / decoder.Plan().seconds;
      decoder.RunTokens(10);
      const DecoderPlan after = decoder.Plan();
      EXPECT_NEAR(after.seconds / decoder.TrueSeconds(after), 1.0, 0.2) << unlearned;
      EXPECT_LE(decoder.TrueSeconds(after), 1.1 * decoder.TrueSeconds(decoder.BestPlan()));
      moved += after.placement.layers != before.placement.layers;
      // It recovers, and is used as before.
      decoder.machine().Slow(slow, 1.0);
      decoder.RunTokens(15);
      const DecoderPlan again = decoder.Plan();
      EXPECT_NEAR(again.seconds / before.seconds, 1.0, 0.2);
    }
  }
  EXPECT_GE(moved, 1);
}

// ---- Queued calls ----

TEST(QueuedWork, CorrectsEachClassOnceByTheRatioOfTheWhole) {
  CostCorrection correction(3);
  QueuedWork work;
  EXPECT_FALSE(work.known());
  work.Clear();
  for (int i = 0; i < 100; ++i) work.Add(i % 2, 0.03, 0.01);  // 2 seconds in all
  ASSERT_TRUE(work.known());
  work.Teach(correction, 2.2);
  for (const int slot : {0, 1}) EXPECT_NEAR(correction.Factor(slot), 1.03, 1e-12);
  EXPECT_EQ(correction.Factor(2), 1.0);
  for (int i = 0; i < 100; ++i) work.Teach(correction, 1e9);
  EXPECT_EQ(correction.Factor(0), CostCorrection::kMaxCorrection);
  work.AddUnknown();
  EXPECT_FALSE(work.known());
  correction.Reset();
  work.Teach(correction, 2.2);
  EXPECT_EQ(correction.Factor(0), 1.0);
  // Launches are most of it.
  work.Clear();
  work.Add(0, 0.011, 0.01);
  EXPECT_FALSE(work.known());
}

// ---- As a session does it ----

// Of calls of every class that the small model has.
std::shared_ptr<const CostModel> Costs(double cpu_seconds, double gpu_seconds) {
  CostProfile profile = cases::ConstantModel({OpKind::kMatMul, OpKind::kAttention, OpKind::kAdd},
                                             cpu_seconds, gpu_seconds)
                            ->profile();
  const std::vector<CostTable> tables = profile.tables;
  for (CostTable table : tables) {
    if (table.cost_class.op == OpKind::kAdd) continue;
    table.cost_class.weights = DType::kF16;
    profile.tables.push_back(std::move(table));
  }
  return std::make_shared<const CostModel>(CostModel::FromProfile(std::move(profile)).value());
}

class PlacedSession : public testing::Test {
 protected:
  // The last of two layers and the output on the GPU; so many tokens one by one.
  void Run(std::shared_ptr<const CostModel> model, ContextOptions options = {}, int tokens = 4) {
    context_ = cases::QuietContext(std::move(model), std::move(options));
    RandomModel random;
    random.hidden = 64;
    random.feed_forward = 96;
    random.vocabulary = 64;
    const std::vector<std::byte> bytes = random.Bytes();
    ModelOptions placed;
    placed.placement = DecoderPlacement::Everything(kCpu, 2);
    placed.placement->layers[1] = {kGpu, kGpu};
    placed.placement->output = kGpu;
    auto file = GgufFile::FromMemory(bytes, "small");
    ASSERT_TRUE(file.ok()) << file.status();
    auto loaded = Model::Load(*context_, *file, placed);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    auto session = Session::Create(*context_, *loaded, {.capacity = 32});
    ASSERT_TRUE(session.ok()) << session.status();
    context_->cost_correction().Reset();
    for (int32_t token = 0; token < tokens; ++token) {
      ASSERT_TRUE((*session)->Forward({&token, 1}).ok());
      ASSERT_TRUE(context_->device(kGpu)->stream->Synchronize().ok());
    }
  }
  double Factor(OpKind op, DeviceKind device) {
    OpFacts facts;
    facts.op = op;
    facts.m = facts.n = facts.k = 1;
    facts.weights = DType::kF16;
    const int table = context_->cost_model()->TableOf(facts, device);
    EXPECT_GE(table, 0);
    return context_->cost_correction().Factor(CostCorrection::SlotOf(table, /*moved=*/false));
  }

  std::unique_ptr<Context> context_;
};

// The CPU learns from every call, the GPU from each segment of calls: of four tokens three, for
// nobody has asked for what the last took.
TEST_F(PlacedSession, EachDeviceLearns) {
  Run(Costs(1e-12, 1e3));
  for (const OpKind op : {OpKind::kMatMul, OpKind::kAttention, OpKind::kAdd}) {
    SCOPED_TRACE(std::string(Name(op)));
    EXPECT_GT(Factor(op, kCpu), 2.0);
    EXPECT_NEAR(Factor(op, kGpu), std::pow(1.25, -3), 1e-6);
  }
  Run(Costs(1e3, 1e-12));
  EXPECT_LT(Factor(OpKind::kMatMul, kCpu), 0.5);
  EXPECT_NEAR(Factor(OpKind::kMatMul, kGpu), std::pow(1.25, 3), 1e-6);
  // Under a trace every call is waited for: each one teaches.
  ContextOptions traced;
  traced.trace = true;
  Run(Costs(1e-12, 1e3), traced);
  EXPECT_LT(Factor(OpKind::kMatMul, kGpu), std::pow(1.25, -4));
}

TEST_F(PlacedSession, NothingIsLearnedOnRequestNorFromFaults) {
  for (const bool fixed : {false, true}) {
    ContextOptions options;
    options.policy.correct_online = 0;
    if (fixed) options.policy.kind = PolicyKind::kFixed;
    Run(Costs(1e-12, 1e3), options);
    EXPECT_EQ(Factor(OpKind::kMatMul, kCpu), 1.0);
    EXPECT_EQ(Factor(OpKind::kMatMul, kGpu), 1.0);
  }
  // Classes that were not measured are in the time of the segment, but not in what is predicted.
  Run(cases::ConstantModel({OpKind::kAdd}, 1e-12, 1e3));
  EXPECT_EQ(context_->cost_correction().Factor(CostCorrection::SlotOf(1, false)), 1.0);
}

}  // namespace
}  // namespace tandem
