// Costs that are made up, for tests of what is decided by them and learned from calls.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dispatch/context.h"
#include "dispatch/cost_model.h"
#include "dispatch/split_costs.h"
#include "tests/simulated_machine.h"

namespace tandem::cases {

// A machine on which calls of these ops, all f32, take so long, whatever their size, and copies
// nothing.
inline std::shared_ptr<const CostModel> ConstantModel(const std::vector<OpKind>& ops,
                                                      double cpu_seconds, double gpu_seconds) {
  CostProfile profile;
  profile.machine = "made up";
  for (const DeviceKind kind : kDeviceKinds) {
    profile.devices[kind] = {std::string(Name(kind)), 0.0, 1e12};
    profile.copies_to[kind] = {CopyCosts{0.0, 1e18}, CopyCosts{0.0, 1e18}};
    const double seconds = kind == DeviceKind::kCpu ? cpu_seconds : gpu_seconds;
    for (const OpKind op : ops) {
      profile.tables.push_back({.cost_class = {op, DType::kF32, DType::kF32, false},
                                .device = kind,
                                .rows = {1.0, 1e6},
                                .work = {1.0, 1e12},
                                .seconds = std::vector<double>(4, seconds)});
    }
  }
  return std::make_shared<const CostModel>(CostModel::FromProfile(std::move(profile)).value());
}

// A context of one thread with the emulated GPU that predicts by these costs and logs nothing.
inline std::unique_ptr<Context> QuietContext(std::shared_ptr<const CostModel> model,
                                             ContextOptions options = {}) {
  options.threads = 1;
  options.cuda_emulated = true;
  options.kernel_profile = "off";
  options.cost_model = std::move(model);
  std::unique_ptr<Context> context = Context::Create(options).value();
  context->health().SetLog({});
  return context;
}

// What a simulated machine really takes; it must outlive the result.
inline SplitCosts TruthOf(const simulated::Machine& machine) {
  SplitCosts costs;
  costs.call = [&machine](const OpFacts& facts, DeviceKind device) -> std::optional<double> {
    return machine.CallSeconds(facts, device);
  };
  costs.copy = [&machine](DeviceKind from, DeviceKind to, int64_t bytes) {
    return machine.CopySeconds(from, to, bytes, /*pinned=*/true);
  };
  costs.queue_seconds = machine.spec().gpu.launch_seconds;
  costs.shared_bytes_per_second = machine.spec().shared_bytes_per_second;
  return costs;
}

}  // namespace tandem::cases
