// tandem calibrate: time calls on the devices of this machine and keep the result, so that later
// runs put calls where they take least. tandem calibrate kernels: which kernel is fastest for which
// calls.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <optional>
#include <string_view>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/cost_calibration.h"
#include "dispatch/kernel_calibration.h"
#include "dispatch/registry.h"
#include "tools/command.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  ComputeOptions compute;
  std::string out;
  bool all = false;
  bool json = false;
  bool emulated = false;
  double seconds = CostCalibrationOptions().seconds;
};

// Classes in which another kernel than the list's first is preferred, or all.
void Print(const KernelProfile& profile, bool all) {
  Table table({"calls", "chosen", "us", "next", "us", "list order says"});
  int differ = 0;
  for (const KernelMeasurement& measurement : profile.measurements) {
    const KernelClass& c = measurement.kernel_class;
    const std::vector<std::string_view> list = KernelNames(c.op, c.device);
    const std::vector<uint8_t> order = OrderByTime(list, measurement.times);
    const auto seconds = [&](std::string_view name) {
      for (const KernelTime& time : measurement.times) {
        if (time.kernel == name) return absl::StrFormat("%.1f", time.seconds * 1e6);
      }
      return std::string();
    };
    const std::string_view chosen = list[order[0]];
    const std::string_view first = list[*std::min_element(order.begin(), order.end())];
    differ += chosen != first;
    if (!all && chosen == first) continue;
    table.Row({Describe(c), std::string(chosen), seconds(chosen), std::string(list[order[1]]),
               seconds(list[order[1]]), std::string(first)});
  }
  table.Print(std::cout, UseColor(1));
  std::cout << profile.measurements.size() << " classes of calls measured, in " << differ
            << " another kernel than the list's first is chosen\n";
}

absl::StatusOr<int> Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(ContextOptions context_options, ToContextOptions(o.compute));
  context_options.kernel_profile = "off";
  TANDEM_ASSIGN_OR_RETURN(auto context, Context::Create(context_options));
  std::optional<Progress> progress("measuring");
  KernelCalibrationOptions options;
  options.progress = [&](int done, int total, const std::string& what) {
    progress->Update(done, total, what);
  };
  TANDEM_ASSIGN_OR_RETURN(const KernelProfile profile, CalibrateKernels(*context, options));
  progress.reset();
  if (o.json) {
    std::cout << ToJson(profile);
    return kExitOk;
  }
  const std::string path = o.out.empty() ? DefaultKernelProfilePath(profile.machine) : o.out;
  TANDEM_RETURN_IF_ERROR(SaveKernelProfile(path, profile));
  Print(profile, o.all);
  std::cout << "kept in " << path << "\n";
  return kExitOk;
}

std::string Rate(double bytes_per_second) {
  return absl::StrFormat("%.1f GB/s", bytes_per_second * 1e-9);
}

void Print(const CostCalibration& result) {
  const CostProfile& profile = result.profile;
  Table devices({"device", "name", "launch", "reads memory at"});
  Table copies({"copies to", "host memory", "latency", "bandwidth"});
  for (const DeviceKind kind : kDeviceKinds) {
    const DeviceCosts& device = profile.devices[kind];
    if (device.name.empty()) continue;
    devices.Row({std::string(Name(kind)), device.name, HumanSeconds(device.launch_seconds),
                 Rate(device.bytes_per_second)});
    for (const bool pinned : {false, true}) {
      const CopyCosts& copy = profile.copies_to[kind][pinned ? 1 : 0];
      if (copy.bytes_per_second <= 0.0) continue;
      copies.Row({std::string(Name(kind)), pinned ? "page-locked" : "pageable",
                  HumanSeconds(copy.latency_seconds), Rate(copy.bytes_per_second)});
    }
  }
  devices.Print(std::cout, UseColor(1));
  if (!profile.devices[DeviceKind::kCuda].name.empty()) copies.Print(std::cout, UseColor(1));
  std::cout << profile.tables.size() << " classes of calls measured\n";
  // On a busy machine that is most of them: one line says it.
  constexpr std::string_view kCoarse = "points, for lack of time";
  const auto coarse = std::count_if(result.notes.begin(), result.notes.end(),
                                    [&](const auto& note) { return note.ends_with(kCoarse); });
  constexpr int kFew = 4;
  for (const std::string& note : result.notes) {
    if (coarse <= kFew || !note.ends_with(kCoarse)) std::cout << note << "\n";
  }
  if (coarse > kFew) {
    std::cout << coarse << " of them with fewer points than on an idle machine, for lack of time: "
              << "again when nothing else runs, or with more --seconds, predicts better\n";
  }
}

// The GPU is measured if there is one, without being asked for.
absl::StatusOr<int> RunCosts(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(ContextOptions context_options, ToContextOptions(o.compute));
  context_options.cost_profile = "off";
  context_options.policy.kind = PolicyKind::kFixed;
  context_options.cuda = context_options.device != DeviceKind::kCpu;
  context_options.device.reset();
  TANDEM_ASSIGN_OR_RETURN(auto context, Context::Create(context_options));
  if (context->has({DeviceKind::kCuda, kEmulatedDevice}) && !o.emulated) {
    return InvalidArgument(
        "cuda:emulated: its kernels run on the CPU, thousands of times slower than on a GPU; a "
        "profile of it says nothing about one and would keep every call away from it (--emulated: "
        "measure it all the same, to test)");
  }
  std::optional<Progress> progress("measuring");
  CostCalibrationOptions options;
  options.seconds = o.seconds;
  options.progress = [&](int done, int total, const std::string& what) {
    progress->Update(done, total, what);
  };
  const std::unique_ptr<TimedMachine> machine = MakeTimedMachine(*context);
  TANDEM_ASSIGN_OR_RETURN(const CostCalibration result, CalibrateCosts(*machine, options));
  progress.reset();
  if (o.json) {
    std::cout << ToJson(result.profile);
    return kExitOk;
  }
  const std::string path = o.out.empty() ? DefaultCostProfilePath(result.profile.machine) : o.out;
  TANDEM_RETURN_IF_ERROR(SaveCostProfile(path, result.profile));
  Print(result);
  std::cout << "kept in " << path << "\n";
  if (context->device(DeviceKind::kCuda) == nullptr) {
    std::cout << "there is no GPU here: no device to choose, but `tandem explain` predicts by it\n";
  }
  if (context->kernel_preferences().empty()) {
    std::cout << "kernels were taken in list order; `tandem calibrate kernels`, then this again, "
                 "measures the fastest ones\n";
  }
  return kExitOk;
}

}  // namespace

void AddCalibrate(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "calibrate", "Measure how long calls take on the devices of this machine, for later runs");
  command->require_subcommand(0, 1);
  auto c = std::make_shared<Options>();
  const auto add_costs = [c](CLI::App& to) {
    to.add_option("--out", c->out, "file to write (default: this machine's, in the cache)");
    to.add_flag("--json", c->json, "print the profile instead of keeping it");
    to.add_option("--seconds", c->seconds, "time to take at most")
        ->check(CLI::Range(1.0, 600.0))
        ->capture_default_str();
    to.add_flag("--emulated", c->emulated, "measure cuda:emulated too, to test");
    AddComputeOptions(to, c->compute);
  };
  const auto run_costs = [c, &action] {
    action = [c] {
      const auto code = RunCosts(*c);
      return code.ok() ? *code : Report(code.status());
    };
  };
  add_costs(*command);
  CLI::App* costs =
      command->add_subcommand("costs", "What `tandem calibrate` does by itself: times of calls");
  add_costs(*costs);
  costs->callback(run_costs);
  command->callback([command, run_costs] {
    if (command->get_subcommands().empty()) run_costs();
  });
  auto o = std::make_shared<Options>();
  CLI::App* kernels = command->add_subcommand(
      "kernels", "Which kernel is fastest for which calls; later runs choose by it");
  kernels->add_option("--out", o->out, "file to write (default: this machine's, in the cache)");
  kernels->add_flag("--all", o->all,
                    "print every class of calls, not only where the choice differs");
  kernels->add_flag("--json", o->json, "print the profile instead of keeping it");
  AddComputeOptions(*kernels, o->compute);
  kernels->callback([o, &action] {
    action = [o] {
      const auto code = Run(*o);
      return code.ok() ? *code : Report(code.status());
    };
  });
}

}  // namespace tandem::tools
