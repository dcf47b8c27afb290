// Plans of decoders on simulated machines (no GPU is timed here): never slower than the better
// device alone, whatever fits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_format.h"
#include "model/decoder_plan.h"
#include "tests/model_shapes.h"
#include "tests/sanitizers.h"
#include "tests/simulated_machine.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

// What is true of a simulated machine.
DecoderMachine TruthOf(const simulated::Machine& machine) {
  DecoderMachine truth;
  truth.call_seconds = [&](const OpFacts& facts, DeviceKind device) {
    return std::optional(machine.CallSeconds(facts, device));
  };
  truth.launch_seconds[kCpu] = machine.spec().cpu.launch_seconds;
  truth.launch_seconds[kGpu] = machine.spec().gpu.launch_seconds;
  truth.copy_seconds = [&](DeviceKind from, DeviceKind to, int64_t bytes) {
    return machine.CopySeconds(from, to, bytes, /*pinned=*/true);
  };
  truth.shared_bytes_per_second = machine.spec().shared_bytes_per_second;
  return truth;
}

TEST(HybridPlan, IsNeverSlowerThanTheBetterDeviceAlone) {
  const bool print = std::getenv("TANDEM_PRINT_TABLES") != nullptr;
  const std::vector<double> shares =
      kSanitized ? std::vector<double>{0.5} : std::vector<double>{0, 0.25, 0.5, 0.75, 1};
  for (const simulated::MachineSpec& spec : simulated::Machines()) {
    simulated::Machine machine(spec);
    const CostModel model = machine.Calibrate();
    const DecoderMachine predicted = DecoderMachine::Of(model), truth = TruthOf(machine);
    double worst = HUGE_VAL, worst_regret = 0.0, gain = 0.0;
    int plans = 0, mixed = 0;
    for (const bool prompt : {false, true}) {
      for (const ModelShape& shape : ModelShapes()) {
        for (const DType dtype : {DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
          if (prompt && dtype == DType::kQ8_0) continue;
          const ShapedModel decoder(shape, dtype);
          DecoderPlanInputs inputs = {.config = decoder.config, .weights = decoder.weights};
          inputs.session.capacity = 4096;
          inputs.job = prompt ? DecodingJob{512, 0} : DecodingJob{0, 1};
          inputs.packed = [](DType type) { return IsBlockQuantized(type); };
          DecoderMemory memory;
          const auto everything = [&](DeviceKind device) {
            return EvaluateDecoder(inputs, &truth, memory,
                                   DecoderPlacement::Everything(device, shape.layers));
          };
          const DecoderPlan cpu = everything(kCpu), gpu = everything(kGpu);
          std::string row;
          for (const double share : shares) {
            memory.gpu_bytes =
                static_cast<int64_t>(std::ceil(share * static_cast<double>(gpu.gpu_bytes)));
            const auto plan = PlanDecoder(inputs, &predicted, memory);
            ASSERT_TRUE(plan.ok()) << plan.status();
            ASSERT_LE(plan->gpu_bytes, memory.gpu_bytes);
            const double seconds = EvaluateDecoder(inputs, &truth, memory, plan->placement).seconds;
            const double alone = share == 1.0 ? std::min(cpu.seconds, gpu.seconds) : cpu.seconds;
            EXPECT_GE(alone / seconds, 0.98)
                << spec.name << ", " << shape.name << " " << Name(dtype) << ", " << share
                << (prompt ? ", prompt: " : ", generation: ") << Describe(plan->placement) << "; "
                << plan->placement.reason << "; truly " << alone << " alone, " << seconds;
            const auto best = PlanDecoder(inputs, &truth, memory);
            ASSERT_TRUE(best.ok()) << best.status();
            worst = std::min(worst, alone / seconds);
            worst_regret = std::max(worst_regret, seconds / best->seconds - 1.0);
            gain += std::log(alone / seconds);
            ++plans;
            const int64_t there = HalvesOnGpu(plan->placement);
            mixed += there > 0 && there < 2 * shape.layers ? 1 : 0;
            absl::StrAppend(&row, absl::StrFormat(" %.2f |", alone / seconds));
          }
          if (print) {
            std::printf("| %s | %s | %s | %s |%s\n", spec.name.c_str(),
                        prompt ? "prompt" : "generation", shape.name.c_str(),
                        std::string(Name(dtype)).c_str(), row.c_str());
          }
        }
      }
    }
    std::printf(
        "%s: worst %.3f of the better device alone, mean %.2f; at most %.1f %% from the best "
        "plan; %d of %d plans on both devices\n",
        spec.name.c_str(), worst, std::exp(gain / plans), 100.0 * worst_regret, mixed, plans);
    EXPECT_GT(mixed, 0) << spec.name;
    EXPECT_LT(worst_regret, 0.2) << spec.name;
  }
}

// The best of all numbers of layers and shares of their caches that fit, by these times.
double BruteForce(const DecoderPlanInputs& inputs, const DecoderMachine& machine,
                  const DecoderMemory& memory) {
  const int64_t all = inputs.config.layers, tokens = inputs.session.capacity;
  double best =
      EvaluateDecoder(inputs, &machine, memory, DecoderPlacement::Everything(kCpu, all)).seconds;
  for (int64_t layers = 1; layers <= all; ++layers) {
    DecoderPlacement placement = DecoderPlacement::Everything(kCpu, all);
    for (int64_t i = all - layers; i < all; ++i) {
      placement.layers[static_cast<size_t>(i)] = {kGpu, kGpu};
    }
    placement.output = kGpu;
    for (int64_t part = 16; part > 0; --part) {  // of the cache; more are at most as slow
      placement.gpu_cache_rows.reset();
      if (part < 16) placement.gpu_cache_rows = tokens * part / 16 / 32 * 32;
      const DecoderPlan plan = EvaluateDecoder(inputs, &machine, memory, placement);
      if (plan.gpu_bytes > memory.gpu_bytes) continue;
      best = std::min(best, plan.seconds);
      break;
    }
  }
  return best;
}

// What the plans of one decoder take by the true times.
struct CacheFigures {
  double cpu, whole, chosen, best;
  bool split;
};

CacheFigures FiguresOf(DecoderPlanInputs& inputs, const DecoderMachine& predicted,
                       const DecoderMachine& truth, double share) {
  CacheFigures figures = {};
  DecoderMemory memory;
  const auto everything = [&](DeviceKind device) {
    return EvaluateDecoder(inputs, &truth, memory,
                           DecoderPlacement::Everything(device, inputs.config.layers));
  };
  figures.cpu = everything(kCpu).seconds;
  memory.gpu_bytes = static_cast<int64_t>(share * static_cast<double>(everything(kGpu).gpu_bytes));
  for (const bool split_caches : {false, true}) {
    inputs.split_caches = split_caches;
    const auto plan = PlanDecoder(inputs, &predicted, memory);
    EXPECT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->gpu_bytes, memory.gpu_bytes);
    const double taken = EvaluateDecoder(inputs, &truth, memory, plan->placement).seconds;
    EXPECT_GE(figures.cpu / taken, 0.98)
        << Describe(plan->placement) << "; " << plan->placement.reason;
    (split_caches ? figures.chosen : figures.whole) = taken;
    figures.split = plan->placement.gpu_cache_rows.has_value();
  }
  EXPECT_GE(figures.whole / figures.chosen, 0.98);
  figures.best = std::min(figures.whole, BruteForce(inputs, truth, memory));
  return figures;
}

// Long contexts: caches are larger than weights, and where memory is short a part of each cache on
// the GPU may be worth more than whole caches of fewer layers. Never worse than the better device
// alone, than whole caches, or much worse than the best of both kinds.
TEST(HybridPlan, LongCachesAreSplitWherePartsOfThemAreWorthMore) {
  const bool print = std::getenv("TANDEM_PRINT_TABLES") != nullptr;
  const std::vector<double> shares =
      kSanitized ? std::vector<double>{0.25} : std::vector<double>{0.1, 0.25, 0.5, 0.75};
  for (const simulated::MachineSpec& spec : simulated::Machines()) {
    simulated::Machine machine(spec);
    const CostModel model = machine.Calibrate();
    const DecoderMachine predicted = DecoderMachine::Of(model), truth = TruthOf(machine);
    double worst = HUGE_VAL, worst_regret = 0.0, gain = 0.0, most = 1.0;
    int plans = 0, split = 0;
    for (const ModelShape& shape : ModelShapes()) {
      for (const DType cache : {DType::kF16, DType::kI8}) {
        for (const int64_t tokens : {16384, 131072}) {
          if (shape.hidden < 1024) continue;
          const ShapedModel decoder(shape, DType::kQ4_K);
          DecoderPlanInputs inputs = {.config = decoder.config, .weights = decoder.weights};
          inputs.session.capacity = tokens;
          inputs.session.kv_dtype = cache;
          inputs.packed = [](DType type) { return IsBlockQuantized(type); };
          std::string row = absl::StrCat(spec.name, " | ", shape.name, " | ",
                                         std::string(Name(cache)), " | ", tokens, " |");
          for (const double share : shares) {
            SCOPED_TRACE(absl::StrCat(row, " ", share));
            const CacheFigures figures = FiguresOf(inputs, predicted, truth, share);
            worst = std::min(worst, figures.cpu / figures.chosen);
            worst_regret = std::max(worst_regret, figures.chosen / figures.best - 1.0);
            gain += std::log(figures.whole / figures.chosen);
            most = std::max(most, figures.whole / figures.chosen);
            split += figures.split;
            ++plans;
            absl::StrAppendFormat(&row, " %.2f, %.2f |", figures.cpu / figures.whole,
                                  figures.cpu / figures.chosen);
          }
          if (print) std::printf("| %s\n", row.c_str());
        }
      }
    }
    std::printf(
        "%s: worst %.3f of the CPU alone; %d of %d plans split their caches, which is up to %.2f "
        "times as fast as whole ones, mean %.2f; at most %.1f %% from the best plan\n",
        spec.name.c_str(), worst, split, plans, most, std::exp(gain / plans), 100.0 * worst_regret);
    EXPECT_GT(split, 0) << spec.name;
    EXPECT_LT(worst_regret, 0.2) << spec.name;
  }
}

}  // namespace
}  // namespace tandem
