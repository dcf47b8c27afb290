// What `tandem bench --compare` measured, and what follows from it: where one device overtakes
// another, and what a choice of devices costs beside the best. Plain data: it can be read from a
// file of any machine, measured or simulated. docs/benchmarking.md documents the JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::tools {

// Where the times come from.
enum class ComparisonKind { kMeasured, kSimulated };

struct MachineLimit {
  enum class Kind { kBandwidth, kCompute, kTransfer } kind = Kind::kBandwidth;
  std::string what;    // "read, DRAM"
  double value = 0.0;  // GB/s (1e9 bytes) or GFLOP/s
};

struct ComparedDevice {
  std::string id;         // "cpu", "cuda", "cuda:emulated"
  std::string name;       // "AMD EPYC 9965, 2 threads, avx512"
  bool emulated = false;  // its times are those of an emulator on the CPU: no GPU's
  std::vector<MachineLimit> limits;
};

// What calls took, from asking for them until their results could be read.
struct ComparedTime {
  std::string device;
  std::string kernel;
  int runs = 0;                                // 0: not measured, for the reason in `why`
  double median = 0.0, low = 0.0, high = 0.0;  // seconds; low, high: the quartiles
  std::string why;
};

struct ComparedPoint {
  int64_t x = 0;  // the length or number of rows that the series is about
  double bytes = 0.0, flops = 0.0;
  std::vector<ComparedTime> times;
  std::string choice;     // device that the scheduler chooses
  std::string reason;     // and why
  std::string constants;  // device that the fixed thresholds would choose
};

struct ComparedSeries {
  std::string id;                     // "attention_decode_f16/host"
  std::string op;                     // section of the report
  std::string title;                  // "f16 cache"
  std::string shape;                  // what is the same for all points, in words
  std::string x_name;                 // "cache length (keys)"
  std::string operands;               // device id of where they are
  std::vector<ComparedPoint> points;  // by x, rising
};

struct Comparison {
  static constexpr int kVersion = 1;
  ComparisonKind kind = ComparisonKind::kMeasured;
  std::string tandem_version;
  std::string date;    // UTC, ISO 8601
  std::string policy;  // by which the scheduler chose
  bool quick = false;
  std::vector<std::pair<std::string, std::string>> machine;  // what, words
  std::vector<std::pair<std::string, std::string>> absent;   // device asked for, why it is missing
  std::vector<ComparedDevice> devices;
  std::vector<ComparedSeries> series;
};

// nullptr if the device was not measured there.
const ComparedTime* TimeOf(const ComparedPoint& point, const std::string& device);
// The fastest; nullptr if nothing was measured.
const ComparedTime* Best(const ComparedPoint& point);

// Where the order of two devices changes along a series: between two neighbouring points, both
// measured on both, times are taken for straight lines in log(x), log(seconds).
struct Crossover {
  double x = 0.0;
  std::string below, above;  // the faster device below x and above it
};
std::vector<Crossover> Crossovers(const ComparedSeries& series, const std::string& a,
                                  const std::string& b);

// By how much `device` is slower than the best at this point: 0.1 is 10 %. nullopt unless the
// device and at least one other were measured.
std::optional<double> Regret(const ComparedPoint& point, const std::string& device);

struct RegretSummary {
  std::string strategy;  // "scheduler", "fixed constants", "always cpu"
  int points = 0;
  double mean = 0.0, worst = 0.0;
  std::string worst_series;
  int64_t worst_x = 0;
};
// Of one series, or of all: the scheduler, the constants, and each device always. Empty where only
// one device was measured.
std::vector<RegretSummary> Regrets(const Comparison& comparison,
                                   const ComparedSeries* only = nullptr);

std::string ToJson(const Comparison& comparison);
// InvalidArgument names what is missing or not as documented.
absl::StatusOr<Comparison> ComparisonFromJson(const std::string& text);

// A page that needs nothing but itself. `comparison` as read by ComparisonFromJson: the strings are
// valid UTF-8.
std::string ToHtml(const Comparison& comparison);

}  // namespace tandem::tools
