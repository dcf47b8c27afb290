// tandem check: every kernel of every device against fp64 references over the shared cases, and the
// devices against each other. The engine is tests/cases/check.h; this is its command line.
#include "tests/cases/check.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/registry.h"
#include "tools/command.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  cases::CheckOptions check;
  bool short_grid = false;
  bool list = false;
  bool json = false;
  bool by_dtype = false;
  std::string junit;
};

int List() {
  for (int i = 0; i < kNumOps; ++i) {
    const OpKind op = static_cast<OpKind>(i);
    for (DeviceKind device : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      for (std::string_view kernel : KernelNames(op, device)) {
        std::cout << Name(op) << "=" << kernel << " (" << Name(device) << ")\n";
      }
    }
  }
  return kExitOk;
}

int Run(const Options& options) {
  if (options.list) return List();
  Progress progress("checking");
  cases::CheckOptions check = options.check;
  check.grid = options.short_grid ? cases::GridSize::kShort : cases::GridSize::kFull;
  check.progress = [&](const cases::CheckProgress& p) {
    progress.Update(p.done, p.total,
                    std::string(p.op) + (p.failed ? absl::StrFormat(", %d failed", p.failed) : ""));
  };
  const auto report = cases::RunCheck(check);
  if (!report.ok()) return Report(report.status());
  if (!options.junit.empty()) {
    std::ofstream file(options.junit);
    file << cases::CheckJunit(*report);
    file.close();
    if (!file) return Report(InvalidArgument("--junit: cannot write '", options.junit, "'"));
  }
  if (options.json) {
    std::cout << cases::CheckJson(*report) << "\n";
  } else {
    std::cout << cases::CheckTable(*report, options.by_dtype);
  }
  if (report->passed() == 0 && report->failed() == 0) {
    return Report(absl::FailedPreconditionError("nothing ran: every chosen kernel is unsupported"));
  }
  return report->failed() + report->pairs_failed() == 0 ? kExitOk : kExitFailed;
}

}  // namespace

void AddCheck(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "check",
      "Compare every kernel of every device with fp64 references over the shared cases, and the "
      "kernels of different devices with each other");
  command->add_flag("--short", o->short_grid, "a few cases per kernel, in seconds");
  command->add_option("--op", o->check.ops, "only these ops (repeatable)");
  command->add_option("--kernel", o->check.kernels, "only kernels of these names (repeatable)");
  command->add_option(
      "--isa", o->check.isas,
      "limit the instruction set: scalar, avx2, avx512 (repeatable: one pass each)");
  command
      ->add_option("--devices", o->check.devices,
                   "only these devices: cpu, cuda, cuda:emulated (comma-separated)")
      ->delimiter(',');
  command->add_option("--schedule", o->check.schedules,
                      "order of threads on cuda:emulated: fifo, lifo, reverse, random:SEED "
                      "(repeatable: one pass each)");
  command->add_option("-t,--threads", o->check.threads, "CPU threads (default: one per core)")
      ->check(CLI::Range(0, 4096));
  command->add_option("--case", o->check.case_text, "run this one case, as a failure prints it");
  command->add_option("--random", o->check.random_cases, "add this many random cases per op");
  command->add_option("--seed", o->check.random_seed, "seed of the random cases")
      ->capture_default_str();
  command->add_flag("--by-dtype", o->by_dtype, "one line per dtype");
  command->add_flag("--json", o->json, "machine-readable output");
  command->add_option("--junit", o->junit, "also write a JUnit XML report to this file");
  command->add_flag("--list", o->list, "list every kernel by op and device, and stop");
  command->callback([o, &action] { action = [o] { return Run(*o); }; });
}

}  // namespace tandem::tools
