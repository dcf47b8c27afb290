// Kernels of different devices compared with each other, on the same cases.
//
// Both kernels of a pair are held to the same expectation, so the relative L2 distance of their
// results is at most the sum of what each may be off by:
//   |a - b| / |e| <= own(a) + own(b),   own = min(|allowed| / |e|, the case's relative L2 bound)
// with e the f64 reference, all norms over the elements that are finite in e, a and b. Elements
// that are not finite must be the same in both. Where the contract is exact the bound is 0.
//
// Only the results of one case are held at a time.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/cases/run.h"

namespace tandem::cases {

// Counts distances in units in the last place: exactly below 16, above by eighths of a power of 2.
class UlpCounts {
 public:
  void Add(uint64_t distance);
  void Merge(const UlpCounts& other);
  int64_t count() const { return count_; }
  uint64_t max() const { return max_; }
  // The least distance (of its bucket the largest) that `fraction` of the elements do not exceed.
  uint64_t Quantile(double fraction) const;

 private:
  static constexpr size_t kExact = 16;
  static size_t BucketOf(uint64_t distance);
  static uint64_t LargestOf(size_t bucket);

  std::array<int64_t, kExact + 8 * 60> buckets_{};
  int64_t count_ = 0;
  uint64_t max_ = 0;
};

// Numbers of the storage type between two of its values (0: equal, or zeros of either sign, or both
// NaN); of integers the difference. Infinities are the numbers after the largest. NaN and a number:
// nothing is further apart (2^32).
uint64_t UlpDistance(DType dtype, double a, double b);

// How two results of one case differ.
struct Difference {
  double max_abs = 0.0;
  double relative_l2 = 0.0;
  double worst_ratio = 0.0;  // difference / bound, in L2; infinite where what must be equal is not
  UlpCounts ulps;            // of outputs of plain types
  std::string problem;       // beyond the bound: what and where; else empty
};
Difference CompareOutputs(const std::vector<Expectation>& expectations,
                          const std::vector<Output>& a, const std::vector<Output>& b);

// What one kernel of one device made of a case.
struct DeviceRun {
  std::string device;
  std::string kernel;
  Outcome outcome;  // with its outputs
};

// Two kernels of two devices, with one dtype.
struct PairRow {
  std::string op;
  std::string isa;
  std::string dtype;
  std::string device_a, kernel_a;
  std::string device_b, kernel_b;
  int64_t cases = 0;  // passed + failed + unsupported
  int64_t passed = 0;
  int64_t failed = 0;
  int64_t unsupported = 0;   // by at least one of them
  double worst_ratio = 0.0;  // the largest of a case, as are:
  double max_abs_difference = 0.0;
  double relative_l2 = 0.0;
  UlpCounts ulps;                 // of all elements of all cases
  std::string first_failure;      // with its reproducer
  std::string first_unsupported;  // which of them, and the reason
};

class PairRows {
 public:
  // The runs of one case by all kernels of all devices: every kernel of a device is compared with
  // every kernel of the devices after it.
  void Add(const std::string& op, const std::string& isa, const std::string& dtype,
           const std::string& case_text, const std::vector<Expectation>& expectations,
           const std::vector<DeviceRun>& runs);
  std::vector<PairRow> Take() { return std::move(rows_); }

 private:
  PairRow& Row(const std::string& op, const std::string& isa, const std::string& dtype,
               const DeviceRun& a, const DeviceRun& b);

  std::vector<PairRow> rows_;
};

}  // namespace tandem::cases
