// A comparison on a machine that does not exist (tests/simulated_machine.h): the published grid,
// its times and those of the scheduler that has calibrated it, so that there is a report to look at
// where there is no GPU. Labelled as simulated wherever it is shown; says nothing about any
// hardware.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/comparison.h"

namespace tandem::tools {

// "laptop", "server", ...: the first words of the machines' names.
std::vector<std::string> SimulatedMachineNames();

struct SimulatedOptions {
  std::string machine;
  bool quick = false;
  std::string only;     // series whose id has this in it; empty: all
  int64_t longest = 0;  // no points beyond; 0: all
  uint32_t seed = 1;    // of the noise
};
// The same options give the same report. InvalidArgument: an unknown machine, no series.
absl::StatusOr<Comparison> SimulateComparison(const SimulatedOptions& options);

}  // namespace tandem::tools
