// What the subcommands of `tandem` share. Each adds itself to the CLI11 application and, when
// chosen, runs and returns the exit code: 0 success, 1 the work failed (an error, a failing check),
// 2 bad usage.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dispatch/context.h"

namespace CLI {
class App;
}

namespace tandem::tools {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

// Options of every command that computes.
struct ComputeOptions {
  int threads = 0;
  std::string isa;
  std::string device;
  std::vector<std::string> kernels;  // op=kernel
  bool float_activations = false;
};
void AddComputeOptions(CLI::App& command, ComputeOptions& options);
absl::StatusOr<ContextOptions> ToContextOptions(const ComputeOptions& options);

// Context::Create; its warnings go to stderr, a line each.
absl::StatusOr<std::unique_ptr<Context>> OpenContext(const ContextOptions& options);

// Prints "tandem: <message>" to stderr. Returns kExitUsage for the caller's faults
// (InvalidArgument, NotFound), else kExitFailed.
int Report(const absl::Status& status);

using Action = std::function<int()>;

// Each registers one subcommand; `action` is set when the command line chose it.
void AddDevices(CLI::App& app, Action& action);
void AddGenerate(CLI::App& app, Action& action);
void AddLogits(CLI::App& app, Action& action);
void AddBench(CLI::App& app, Action& action);
void AddBenchModel(CLI::App& app, Action& action);
void AddBenchDevice(CLI::App& app, Action& action);
void AddCheck(CLI::App& app, Action& action);
void AddCheckPrimitives(CLI::App& app, Action& action);
void AddExplain(CLI::App& app, Action& action);
void AddCalibrate(CLI::App& app, Action& action);
void AddScheduleRegret(CLI::App& app, Action& action);
void AddQuantize(CLI::App& app, Action& action);

// The whole command line; what main() returns.
int Main(int argc, const char* const* argv);

}  // namespace tandem::tools
