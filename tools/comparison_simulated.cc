#include "tools/comparison_simulated.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status.h"
#include "core/version.h"
#include "dispatch/facts.h"
#include "tests/simulated_machine.h"
#include "tools/comparison_grid.h"
#include "tools/comparison_operands.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

using simulated::Machine;
using simulated::MachineSpec;

constexpr int kRuns = 21;

std::string ShortName(const MachineSpec& spec) {
  return spec.name.substr(0, spec.name.find_first_of(" ,"));
}

ComparedDevice DeviceOf(const MachineSpec& machine, DeviceKind kind) {
  using Kind = MachineLimit::Kind;
  const simulated::DeviceSpec& spec = kind == DeviceKind::kCpu ? machine.cpu : machine.gpu;
  ComparedDevice device;
  device.id = std::string(Name(kind));
  device.name = spec.name;
  device.limits = {{Kind::kBandwidth, "reads its memory at", spec.bytes_per_second * 1e-9},
                   {Kind::kCompute, "f32 products", spec.f32 * 1e-9},
                   {Kind::kCompute, "products of 16-bit floats", spec.f16 * 1e-9},
                   {Kind::kCompute, "products of quantised weights", spec.quantized * 1e-9}};
  // The first is drawn: what no call exceeds.
  std::stable_sort(device.limits.begin() + 1, device.limits.end(),
                   [](const MachineLimit& a, const MachineLimit& b) { return a.value > b.value; });
  if (kind == DeviceKind::kCuda) {
    device.limits.push_back(
        {Kind::kTransfer, "copies page-locked memory at", machine.pinned.bytes_per_second * 1e-9});
  }
  return device;
}

}  // namespace

std::vector<std::string> SimulatedMachineNames() {
  std::vector<std::string> names;
  for (const MachineSpec& spec : simulated::Machines()) names.push_back(ShortName(spec));
  return names;
}

absl::StatusOr<Comparison> SimulateComparison(const SimulatedOptions& options) {
  const std::vector<MachineSpec> specs = simulated::Machines();
  const auto spec = std::find_if(specs.begin(), specs.end(), [&](const MachineSpec& s) {
    return ShortName(s) == options.machine;
  });
  if (spec == specs.end()) {
    return InvalidArgument("--simulate: expected one of ",
                           absl::StrJoin(SimulatedMachineNames(), ", "), "; got '", options.machine,
                           "'");
  }
  Machine machine(*spec, options.seed);
  const CostModel model = machine.Calibrate();
  Comparison result;
  result.kind = ComparisonKind::kSimulated;
  result.tandem_version = std::string(kVersion);
  result.date = "not measured";
  result.policy = "calibrated, on the simulated machine";
  result.quick = options.quick;
  result.machine = {
      {"simulated", spec->name},
      {"memory of the GPU", HumanBytes(static_cast<double>(spec->gpu_bytes))},
      {"times", "formulas with noise, of the size of published figures; nothing was measured"}};
  for (const DeviceKind kind : kDeviceKinds) result.devices.push_back(DeviceOf(*spec, kind));
  for (GridSeries& grid : ComparisonGrid(options.quick)) {
    if (grid.id.find(options.only) == std::string::npos) continue;
    for (const DeviceKind home : kDeviceKinds) {
      ComparedSeries series;
      series.id = absl::StrCat(grid.id, "/", std::string(Name(home)));
      series.op = grid.op_name;
      series.title = grid.title;
      series.shape = grid.shape;
      series.x_name = grid.x_name;
      series.operands = std::string(Name(home));
      const ShapeOperands operands(grid, Device{home, 0});
      for (const int64_t x : grid.x) {
        if (options.longest > 0 && x > options.longest) continue;
        DecisionInputs inputs;
        inputs.facts =
            WithArgs(grid, operands, x, 0, [](const auto& args) { return FactsOf(args); });
        inputs.cuda_present = true;
        inputs.free_bytes[DeviceKind::kCuda] = spec->gpu_bytes;
        ComparedPoint& point = series.points.emplace_back();
        point.x = x;
        point.bytes = static_cast<double>(inputs.facts.bytes);
        point.flops = inputs.facts.flops;
        for (const DeviceKind device : kDeviceKinds) {
          std::vector<double> seconds;
          for (int i = 0; i < kRuns; ++i) seconds.push_back(machine.Run(inputs.facts, device));
          std::sort(seconds.begin(), seconds.end());
          point.times.push_back({std::string(Name(device)), "simulated", kRuns, seconds[kRuns / 2],
                                 seconds[kRuns / 4], seconds[kRuns * 3 / 4], ""});
        }
        Policy policy;
        policy.kind = PolicyKind::kFixed;
        point.constants = std::string(Name(Choose(inputs, policy, &model).device));
        policy.kind = PolicyKind::kCalibrated;
        const Decision decision = Choose(inputs, policy, &model);
        point.choice = std::string(Name(decision.device));
        point.reason = Explain(decision, inputs, policy);
      }
      if (!series.points.empty()) result.series.push_back(std::move(series));
    }
  }
  if (result.series.empty()) {
    return InvalidArgument("--only: no series has '", options.only, "' in its id");
  }
  return result;
}

}  // namespace tandem::tools
