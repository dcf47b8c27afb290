// Does the calibrated policy put calls where they take least time? On simulated machines, which are
// calibrated with noise, against brute force; and the constants that it replaces do not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "dispatch/cost_correction.h"
#include "tests/regret.h"

namespace tandem::simulated {
namespace {

constexpr double kMeanLimit = 0.05, kWorstLimit = 0.20;

TEST(Regret, CalibratedIsNearTheBestOnEveryMachine) {
  for (const uint32_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
    for (const MachineRegret& machine : RegretOnMachines(seed)) {
      const Regret& calibrated = machine.regrets[0];
      ASSERT_EQ(calibrated.policy, "calibrated");
      EXPECT_GT(calibrated.calls, 800);
      EXPECT_LE(calibrated.mean, kMeanLimit) << machine.machine << ", seed " << seed;
      EXPECT_LE(calibrated.worst, kWorstLimit)
          << machine.machine << ", seed " << seed << ": " << calibrated.worst_call;
    }
  }
}

// The same limits find the constants out, and either device alone: the test can fail.
TEST(Regret, ConstantsAndEitherDeviceAloneAreNot) {
  for (const MachineRegret& machine : RegretOnMachines(1)) {
    ASSERT_EQ(machine.regrets.size(), 5u);
    for (size_t i = 1; i < machine.regrets.size(); ++i) {
      const Regret& other = machine.regrets[i];
      EXPECT_GT(other.mean, kMeanLimit) << machine.machine << ", " << other.policy;
      EXPECT_GT(other.worst, kWorstLimit) << machine.machine << ", " << other.policy;
      EXPECT_GE(other.seconds, machine.regrets[0].seconds);
    }
  }
}

// A model of another machine is found out as well: it is the measurements that decide.
TEST(Regret, AnotherMachinesProfileDoesNotDo) {
  const std::vector<CallShape> grid = RegretGrid();
  const std::vector<MachineSpec> specs = Machines();
  Machine laptop(specs[0]), server(specs[1]);
  const CostModel model = server.Calibrate();
  EXPECT_GT(RegretOf(ComparedPolicies()[0], laptop, model, grid).worst, kWorstLimit);
}

// Without noise only interpolation errs.
TEST(Regret, GrowsWithTheNoiseOfCalibration) {
  double quiet = 0.0, loud = 0.0;
  for (const MachineRegret& machine : RegretOnMachines(1, /*noise=*/0.0)) {
    quiet += machine.regrets[0].mean;
  }
  for (const MachineRegret& machine : RegretOnMachines(1, /*noise=*/1.5)) {
    loud += machine.regrets[0].mean;
  }
  EXPECT_LT(quiet, loud);
}

TEST(Regret, TableAndJsonHoldEveryPolicy) {
  const auto machines = RegretOnMachines(1);
  for (const NamedPolicy& policy : ComparedPolicies()) {
    EXPECT_THAT(ToMarkdown(machines), testing::HasSubstr("| " + policy.name + " |"));
    EXPECT_THAT(ToJson(machines), testing::HasSubstr('"' + policy.name + '"'));
  }
}

// ---- Calibration ----

TEST(Calibration, IsDeterministicAndWithinItsTime) {
  for (const MachineSpec& spec : Machines()) {
    Machine machine(spec, 3), again(spec, 3);
    const CostModel model = machine.Calibrate();
    EXPECT_EQ(ToJson(model.profile()), ToJson(again.Calibrate().profile()));
    EXPECT_LT(machine.Now(), 30.0) << spec.name;
    EXPECT_GT(model.num_tables(), 50) << spec.name;
  }
}

TEST(Calibration, MeasuresCopiesLaunchesAndBandwidth) {
  for (const MachineSpec& spec : Machines()) {
    Machine machine(spec, 4);
    const CostProfile profile = machine.Calibrate().profile();
    const auto& pageable = profile.copies_to[DeviceKind::kCuda][0];
    const auto& pinned = profile.copies_to[DeviceKind::kCpu][1];
    EXPECT_NEAR(pageable.bytes_per_second / spec.pageable.bytes_per_second, 1.0, 0.1);
    EXPECT_NEAR(pinned.bytes_per_second / spec.pinned.bytes_per_second, 1.0, 0.1);
    EXPECT_NEAR(pinned.latency_seconds / spec.pinned.latency_seconds, 1.0, 0.2);
    const DeviceCosts& gpu = profile.devices[DeviceKind::kCuda];
    EXPECT_NEAR(gpu.launch_seconds / spec.gpu.launch_seconds, 1.0, 0.2);
    EXPECT_GT(gpu.bytes_per_second, 0.6 * spec.gpu.bytes_per_second) << spec.name;
    EXPECT_LT(gpu.bytes_per_second, 1.1 * spec.gpu.bytes_per_second) << spec.name;
  }
}

// What both devices read together, where they have one memory; nothing where each has its own.
TEST(Calibration, FindsOutWhereBothDevicesHaveOneMemory) {
  int shared = 0;
  for (const MachineSpec& spec : Machines()) {
    SCOPED_TRACE(spec.name);
    for (uint32_t seed = 1; seed <= 8; ++seed) {
      Machine machine(spec, seed);
      const CostProfile profile = machine.Calibrate().profile();
      EXPECT_NEAR(profile.shared_bytes_per_second, spec.shared_bytes_per_second,
                  0.08 * spec.shared_bytes_per_second);
    }
    shared += spec.shared_bytes_per_second > 0.0;
  }
  EXPECT_EQ(shared, 1);
}

TEST(Calibration, LeavesOutWhatItHasNoTimeFor) {
  Machine machine(Machines()[0]);
  CostCalibrationOptions options;
  options.seconds = 0.05;
  const auto result = CalibrateCosts(machine, options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->notes, testing::Contains(testing::HasSubstr("no time left")));
  EXPECT_TRUE(CostModel::FromProfile(result->profile).ok());
  EXPECT_LT(machine.Now(), 0.5);
}

// A machine that is busy with something else: everything takes longer, preparing as well.
class BusyMachine : public TimedMachine {
 public:
  BusyMachine(Machine& machine, double prepare_seconds)
      : machine_(machine), prepare_seconds_(prepare_seconds) {}
  std::string key() const override { return machine_.key(); }
  std::string device_name(DeviceKind device) const override { return machine_.device_name(device); }
  absl::StatusOr<std::unique_ptr<TimedCall>> Prepare(const CallShape& shape,
                                                     DeviceKind device) override {
    waited_ += prepare_seconds_;
    return machine_.Prepare(shape, device);
  }
  absl::StatusOr<double> RunBoth(TimedCall& on_cpu, int cpu_times, TimedCall& on_gpu,
                                 int gpu_times) override {
    return machine_.RunBoth(on_cpu, cpu_times, on_gpu, gpu_times);
  }
  absl::StatusOr<double> TimeCopy(DeviceKind to, int64_t bytes, bool pinned) override {
    return machine_.TimeCopy(to, bytes, pinned);
  }
  double Now() override { return machine_.Now() + waited_; }

 private:
  Machine& machine_;
  double prepare_seconds_, waited_ = 0.0;
};

// The busier the machine, the coarser the tables: every class that decides is still there, in time,
// it says so, and decisions by such a profile are still far better than the constants'.
TEST(Calibration, HasFewerPointsOnABusyMachine) {
  const std::vector<CallShape> grid = RegretGrid();
  for (const MachineSpec& spec : Machines()) {
    size_t before = SIZE_MAX;
    for (const double prepare : {0.0, 0.015, 0.04, 0.5}) {
      SCOPED_TRACE(testing::Message() << spec.name << ", " << prepare << " s to prepare a call");
      Machine machine(spec, 3);
      BusyMachine busy(machine, prepare);
      const auto result = CalibrateCosts(busy);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_LT(busy.Now(), 29.0);
      size_t points = 0;
      for (const CostTable& table : result->profile.tables) points += table.seconds.size();
      EXPECT_LE(points, before);
      before = points;
      const auto model = CostModel::FromProfile(result->profile);
      ASSERT_TRUE(model.ok()) << model.status();
      const bool coarse = std::any_of(
          result->notes.begin(), result->notes.end(),
          [](const std::string& note) { return note.ends_with("points, for lack of time"); });
      EXPECT_EQ(coarse, prepare > 0.0);
      const Regret calibrated = RegretOf(ComparedPolicies()[0], machine, *model, grid);
      const Regret constants = RegretOf(ComparedPolicies()[1], machine, *model, grid);
      const bool all =
          std::none_of(result->notes.begin(), result->notes.end(),
                       [](const std::string& note) { return note.ends_with("no time left"); });
      EXPECT_EQ(all, prepare < 0.5);
      if (!all) continue;  // what is unknown is decided by the thresholds
      EXPECT_LT(calibrated.mean, prepare > 0.02 ? 0.15 : 0.05);
      EXPECT_LT(calibrated.mean, constants.mean);
    }
  }
}

// ---- Online correction ----

struct Sequence {
  double seconds = 0.0;
  DeviceKind last = DeviceKind::kCpu;
  PerDevice<int> calls;
};

// `calls` calls, decided, run and learned from.
Sequence RunCalls(Machine& machine, const CostModel& model, CostCorrection& correction,
                  const OpFacts& facts, const Policy& policy, int calls) {
  Sequence sequence;
  for (int i = 0; i < calls; ++i) {
    DecisionInputs inputs;
    inputs.facts = facts;
    inputs.cuda_present = true;
    inputs.explore =
        policy.explore_one_in > 0 && i % policy.explore_one_in == policy.explore_one_in - 1;
    const Decision decision = Choose(inputs, policy, &model, &correction);
    const double seconds = machine.Run(facts, decision.device);
    Learn(correction, decision.predicted[decision.device], seconds);
    sequence.seconds += seconds;
    ++sequence.calls[decision.device];
    if (decision.rule != Decision::Rule::kExplores) sequence.last = decision.device;
  }
  return sequence;
}

// A product whose operands are in host memory and that the GPU does somewhat faster.
OpFacts CloseCall(const Machine& machine) {
  CallShape shape = {.weights = DType::kF16, .m = 1, .n = 2560, .k = 2560};
  for (; shape.m < 5000; shape.m += 1 + shape.m / 16) {
    const OpFacts facts = FactsOf(shape).value();
    if (machine.TotalSeconds(facts, DeviceKind::kCuda) <
        0.6 * machine.TotalSeconds(facts, DeviceKind::kCpu)) {
      return facts;
    }
  }
  ADD_FAILURE() << "the GPU is never faster";
  return {};
}

// Makes the GPU `factor` times slower, or more, until the call as a whole is faster on the CPU:
// copies are not slower.
double SlowDownGpu(Machine& machine, const OpFacts& facts, double factor) {
  machine.Slow(DeviceKind::kCuda, factor);
  const double cpu = machine.TotalSeconds(facts, DeviceKind::kCpu);
  while (machine.TotalSeconds(facts, DeviceKind::kCuda) < 1.3 * cpu) {
    machine.Slow(DeviceKind::kCuda, factor *= 1.2);
  }
  return factor;
}

TEST(OnlineCorrection, FollowsAGpuThatBecomesThreeTimesSlower) {
  for (const MachineSpec& spec : {Machines()[0], Machines()[1], Machines()[2]}) {
    Machine machine(spec, 5);
    const CostModel model = machine.Calibrate();
    CostCorrection correction(model.num_tables());
    const OpFacts facts = CloseCall(machine);
    EXPECT_EQ(RunCalls(machine, model, correction, facts, {}, 50).last, DeviceKind::kCuda)
        << spec.name;
    const double factor = SlowDownGpu(machine, facts, 3.0);
    EXPECT_GT(RunCalls(machine, model, correction, facts, {}, 10).calls[DeviceKind::kCpu], 0)
        << spec.name << ", " << factor << " times slower";
    // Runs that something disturbs may send a few calls back.
    EXPECT_GE(RunCalls(machine, model, correction, facts, {}, 100).calls[DeviceKind::kCpu], 80)
        << spec.name;
  }
}

TEST(OnlineCorrection, ExploringFindsOutThatTheGpuHasRecoveredAndCostsLittle) {
  Machine machine(Machines()[0], 6);
  const CostModel model = machine.Calibrate();
  CostCorrection correction(model.num_tables());
  const OpFacts facts = CloseCall(machine);
  SlowDownGpu(machine, facts, 3.0);
  EXPECT_EQ(RunCalls(machine, model, correction, facts, {}, 30).last, DeviceKind::kCpu);
  machine.Slow(DeviceKind::kCuda, 1.0);
  Policy explores;
  explores.explore_one_in = 10;
  explores.explore_max_percent = 300;
  EXPECT_EQ(RunCalls(machine, model, correction, facts, explores, 300).last, DeviceKind::kCuda);
  // What trying the other device costs: at most 2 more of every tenth call, by prediction.
  const double best = machine.TotalSeconds(facts, DeviceKind::kCuda);
  const Sequence sequence = RunCalls(machine, model, correction, facts, explores, 1000);
  EXPECT_LT(sequence.seconds, 1000 * best * (1.0 + 0.2 + 0.15));
}

TEST(OnlineCorrection, RecoversFromTheProfileOfAnotherMachine) {
  const std::vector<MachineSpec> specs = Machines();
  Machine integrated(specs[2]);
  const CostModel wrong = integrated.Calibrate();
  Machine laptop(specs[0], 7);
  CostCorrection correction(wrong.num_tables());
  // Where copies are free the GPU is worth them, on the laptop it is not.
  OpFacts facts;
  bool found = false;
  for (CallShape shape = {.m = 8, .n = 4096, .k = 4096}; !found && shape.m < 600; ++shape.m) {
    facts = FactsOf(shape).value();
    DecisionInputs inputs;
    inputs.facts = facts;
    inputs.cuda_present = true;
    found = Choose(inputs, {}, &wrong).device == DeviceKind::kCuda &&
            laptop.TotalSeconds(facts, DeviceKind::kCpu) <
                0.7 * laptop.TotalSeconds(facts, DeviceKind::kCuda);
  }
  ASSERT_TRUE(found);
  EXPECT_EQ(RunCalls(laptop, wrong, correction, facts, {}, 1).last, DeviceKind::kCuda);
  RunCalls(laptop, wrong, correction, facts, {}, 40);
  EXPECT_EQ(RunCalls(laptop, wrong, correction, facts, {}, 40).last, DeviceKind::kCpu);
}

TEST(OnlineCorrection, NoiseAloneMovesNothingFar) {
  Machine machine(Machines()[1], 8);
  const CostModel model = machine.Calibrate();
  CostCorrection correction(model.num_tables());
  const OpFacts facts = CloseCall(machine);
  RunCalls(machine, model, correction, facts, {}, 1000);
  const int slot = CostCorrection::SlotOf(model.TableOf(facts, DeviceKind::kCuda), true);
  EXPECT_NEAR(correction.Factor(slot), 1.0, 0.25);
}

}  // namespace
}  // namespace tandem::simulated
