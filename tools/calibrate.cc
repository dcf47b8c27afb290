// tandem calibrate kernels: time the kernels of this machine and keep the result, so that later
// runs choose by it.
#include <CLI/CLI.hpp>
#include <iostream>
#include <optional>

#include "absl/strings/str_format.h"
#include "core/status.h"
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

}  // namespace

void AddCalibrate(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("calibrate", "Measure this machine for later runs");
  command->require_subcommand(1);
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
