// Measures a comparison: the published grid of calls (docs/benchmarking.md) on every device asked
// for that is there, and the machine's limits beside it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dispatch/context.h"
#include "tools/comparison.h"

namespace tandem::tools {

struct ComparisonOptions {
  ContextOptions context;            // device, cuda and cuda_emulated are set from `devices`
  std::vector<std::string> devices;  // "cpu", "cuda", "cuda:emulated"; at least one
  bool quick = false;                // fewer lengths, less time for each
  std::string only;                  // series whose id has this in it; empty: all
  int64_t longest = 0;               // no points beyond; 0: all
  std::function<void(int64_t done, int64_t total, const std::string& what)> progress;
};

// InvalidArgument for unknown or repeated devices; NotFound if none of them is present. A device
// that is missing is noted in `absent`.
absl::StatusOr<Comparison> MeasureComparison(const ComparisonOptions& options);

}  // namespace tandem::tools
