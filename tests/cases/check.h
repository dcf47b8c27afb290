// The engine of `tandem check`: every registered kernel of every present device over the shared
// cases, against the f64 references; where there are several devices, their kernels also against
// each other (device_pairs.h).
//
// SIMD kernels are one list entry per instruction set, so that a run over all entries covers every
// set that the machine has; entries above it count as unsupported, with that reason.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/cases/device_pairs.h"
#include "tests/cases/run.h"

namespace tandem::cases {

struct CheckProgress {
  std::string_view op;
  int64_t done = 0;  // cases, of all ops
  int64_t total = 0;
  int64_t failed = 0;  // runs
};

struct CheckOptions {
  GridSize grid = GridSize::kShort;
  std::vector<std::string> ops;      // empty: all
  std::vector<std::string> kernels;  // empty: all
  // Upper limits of the instruction set, one pass each ("scalar", "avx2", "avx512"); empty: one
  // pass with all that the machine has.
  std::vector<std::string> isas;
  // "cpu", "cuda", "cuda:emulated"; empty: those that a context has by itself.
  std::vector<std::string> devices;
  // Orders of threads for the emulated device (ContextOptions::cuda_schedule), one pass each;
  // empty: the default.
  std::vector<std::string> schedules;
  int threads = 0;           // CPU threads; 0: one per core
  std::string case_text;     // if not empty, this case and no other
  int64_t random_cases = 0;  // property cases per op, beside the grid
  uint64_t random_seed = 1;
  int64_t part = 0;  // only the cases whose number is part modulo parts
  int64_t parts = 1;
  std::function<void(const CheckProgress&)> progress;
};

// One kernel with one dtype.
struct CheckRow {
  std::string op;
  std::string device;
  std::string isa;  // the limit; "native" without one
  std::string kernel;
  std::string dtype;
  int64_t cases = 0;  // passed + failed + unsupported
  int64_t passed = 0;
  int64_t failed = 0;
  int64_t unsupported = 0;
  double worst_ratio = 0.0;  // largest error / allowed error
  double max_abs_error = 0.0;
  double relative_l2 = 0.0;       // the largest of a case
  std::string first_failure;      // with its reproducer
  std::string first_unsupported;  // the reason
};

struct CheckReport {
  std::vector<CheckRow> rows;
  std::vector<PairRow> pairs;  // of kernels of different devices
  int64_t cases = 0;           // distinct ones
  // Cases that no kernel of a device accepted: a gap in the kernels, or a case that cannot be.
  std::vector<std::string> never_run;
  double seconds = 0.0;

  // Runs, against the references.
  int64_t passed() const;
  int64_t failed() const;
  // Comparisons of two devices' results.
  int64_t pairs_passed() const;
  int64_t pairs_failed() const;
};

// InvalidArgument: unknown op, kernel or instruction set; a case that cannot be read or is itself
// bad. Wrong results are not errors: they are in the report.
absl::StatusOr<CheckReport> RunCheck(const CheckOptions& options);

// For people: one line per op, device and kernel (its dtypes together; `by_dtype`: one line each),
// then one per kernel and other device (all of that device's kernels together), then the failures
// with their reproducers.
std::string CheckTable(const CheckReport& report, bool by_dtype = false);
// For programs: docs/check_report.md.
std::string CheckJson(const CheckReport& report);
// For CI: one suite per op, one test case per row and per pair.
std::string CheckJunit(const CheckReport& report);

}  // namespace tandem::cases
