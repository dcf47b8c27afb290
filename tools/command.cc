#include "tools/command.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "core/status.h"
#include "core/version.h"
#include "tools/terminal.h"

namespace tandem::tools {

void AddComputeOptions(CLI::App& command, ComputeOptions& options) {
  command.add_option("-t,--threads", options.threads, "CPU threads (default: one per core)")
      ->check(CLI::Range(0, 4096));
  command.add_option("--isa", options.isa, "highest instruction set to use")
      ->check(CLI::IsMember({"scalar", "avx2", "avx512"}));
  command
      .add_option("--device", options.device,
                  "run every op on this device, or fail; prefer:cuda keeps the model on the GPU, "
                  "and goes on without it if it fails; hybrid: a model's layers on both")
      ->check(CLI::IsMember({"cpu", "cuda", "cuda:emulated", "prefer:cuda", "prefer:cuda:emulated",
                             "hybrid", "hybrid:emulated"}));
  command.add_option("--kernel", options.kernels,
                     "force a kernel, as op=name (repeatable); names: tandem check --list");
  command.add_flag("--float-activations", options.float_activations,
                   "do not round activations: to 8 bits for quantised weights, to bf16 for bf16");
}

absl::StatusOr<ContextOptions> ToContextOptions(const ComputeOptions& options) {
  ContextOptions context;
  context.threads = options.threads;
  context.isa = options.isa;
  context.quantize_activations = !options.float_activations;
  if (!options.device.empty()) {
    TANDEM_RETURN_IF_ERROR(context.SetDevice(options.device));
  }
  for (const std::string& choice : options.kernels) {
    const size_t equals = choice.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == choice.size()) {
      return InvalidArgument("--kernel: expected op=name, got '", choice, "'");
    }
    context.force_kernel[choice.substr(0, equals)] = choice.substr(equals + 1);
  }
  return context;
}

absl::StatusOr<std::unique_ptr<Context>> OpenContext(const ContextOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Context> context, Context::Create(options));
  for (const std::string& warning : context->warnings()) {
    std::cerr << Styled("tandem: warning: ", Style::kYellow, UseColor(2)) << warning << "\n";
  }
  return context;
}

int Report(const absl::Status& status) {
  std::cerr << Styled("tandem: ", Style::kRed, UseColor(2)) << Message(status) << "\n";
  const bool usage = status.code() == absl::StatusCode::kInvalidArgument ||
                     status.code() == absl::StatusCode::kNotFound;
  return usage ? kExitUsage : kExitFailed;
}

int Main(int argc, const char* const* argv) {
  CLI::App app("Transformer inference on the CPU and the GPU, the right device for every op.",
               "tandem");
  app.set_version_flag("--version", "tandem " + std::string(kVersion));
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 success, 1 failure, 2 bad usage.\n"
      "Environment: TANDEM_THREADS, TANDEM_ISA, TANDEM_DEVICE, TANDEM_KERNEL, TANDEM_TRACE,\n"
      "TANDEM_QUANTIZE_ACTIVATIONS, TANDEM_KERNEL_PROFILE, TANDEM_COST_PROFILE, TANDEM_POLICY,\n"
      "TANDEM_POLICY_FILE and TANDEM_POLICY_<FIELD> override the options of every command.");
  Action action;
  AddGenerate(app, action);
  AddQuantize(app, action);
  AddDevices(app, action);
  AddCheck(app, action);
  AddCheckPrimitives(app, action);
  AddExplain(app, action);
  AddLogits(app, action);
  AddBench(app, action);
  AddBenchModel(app, action);
  AddBenchDevice(app, action);
  AddCalibrate(app, action);
  AddScheduleRegret(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool asked_for_help = error.get_exit_code() == 0;
    app.exit(error);
    return asked_for_help ? kExitOk : kExitUsage;
  }
  return action();
}

}  // namespace tandem::tools
