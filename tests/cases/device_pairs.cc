#include "tests/cases/device_pairs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/dtype.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr uint64_t kFurthest = uint64_t{1} << 32;
// Of rounding in the norms themselves, sums of at most 2^30 f64 terms.
constexpr double kSlack = 1.0 + 1e-9;

// Bits of a sign and a magnitude as a number that counts the values between two of them.
int64_t Ordered(uint32_t bits, int width) {
  const uint32_t sign = uint32_t{1} << (width - 1);
  const auto magnitude = static_cast<int64_t>(bits & (sign - 1));
  return (bits & sign) != 0 ? -magnitude : magnitude;
}

int64_t Ordered(DType dtype, double x) {
  const auto value = static_cast<float>(x);
  if (dtype == DType::kF16) return Ordered(ToF16(value).bits, 16);
  if (dtype == DType::kBF16) return Ordered(ToBF16(value).bits, 16);
  return Ordered(std::bit_cast<uint32_t>(value), 32);
}

bool Same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

std::string Number(double x) { return std::isnan(x) ? "nan" : absl::StrFormat("%.9g", x); }

// One output of both.
void Compare(const Expectation& expectation, const Output& a, const Output& b,
             Difference& difference) {
  const std::vector<double> left = reference::ReadAll(a.view());
  const std::vector<double> right = reference::ReadAll(b.view());
  // Bytes that must be right are bytes that must be the same.
  const bool exact = expectation.expected.empty();
  if (left.size() != right.size() || a.dtype != b.dtype ||
      (!exact && left.size() != expectation.expected.size())) {
    difference.problem =
        absl::StrCat(expectation.operand, ": ", left.size(), " elements and ", right.size());
    difference.worst_ratio = kInfinity;
    return;
  }
  const bool plain = BlockLength(a.dtype) == 1;
  double squares = 0.0, expected_squares = 0.0, allowed_squares = 0.0, largest = 0.0;
  size_t largest_at = 0, unequal_at = left.size();
  for (size_t i = 0; i < left.size(); ++i) {
    if (plain) difference.ulps.Add(UlpDistance(a.dtype, left[i], right[i]));
    if (exact || !std::isfinite(left[i]) || !std::isfinite(right[i])) {
      if (!Same(left[i], right[i]) && unequal_at == left.size()) unequal_at = i;
      if (!std::isfinite(left[i]) || !std::isfinite(right[i])) continue;
    }
    const double expected = exact ? left[i] : expectation.expected[i];
    const double allowed =
        exact ? 0.0 : expectation.allowed[expectation.allowed.size() == 1 ? 0 : i];
    const double distance = std::fabs(left[i] - right[i]);
    if (distance > largest) {
      largest = distance;
      largest_at = i;
    }
    if (!std::isfinite(expected)) continue;  // both are wrong: the reference says so
    squares += distance * distance;
    expected_squares += expected * expected;
    allowed_squares += allowed * allowed;
  }
  difference.max_abs = std::max(difference.max_abs, largest);
  const double norm = std::sqrt(squares), scale = std::sqrt(expected_squares);
  if (scale > 0.0) difference.relative_l2 = std::max(difference.relative_l2, norm / scale);
  // Of each kernel, in absolute terms: scale may be 0.
  const double own = std::min(std::sqrt(allowed_squares), expectation.max_relative_l2 < kInfinity
                                                              ? expectation.max_relative_l2 * scale
                                                              : kInfinity);
  const double bound = (own + own) * kSlack;
  double ratio = norm == 0.0 ? 0.0 : bound > 0.0 ? norm / bound : kInfinity;
  const auto values = [&](size_t i) {
    return absl::StrCat("element ", i, " is ", Number(left[i]), " and ", Number(right[i]));
  };
  std::string problem;
  if (unequal_at < left.size()) {
    ratio = kInfinity;
    problem = absl::StrCat(expectation.operand, ": ", values(unequal_at));
  } else if (!plain && a.bytes != b.bytes) {
    ratio = kInfinity;
    problem = absl::StrCat(expectation.operand, ": the blocks differ");
  } else if (ratio > 1.0) {
    problem = absl::StrCat(expectation.operand, ": apart by ", Number(norm), " in L2, both bounds",
                           " together allow ", Number(bound), "; ", values(largest_at));
  }
  difference.worst_ratio = std::max(difference.worst_ratio, ratio);
  if (difference.problem.empty()) difference.problem = problem;
}

}  // namespace

size_t UlpCounts::BucketOf(uint64_t distance) {
  if (distance < kExact) return static_cast<size_t>(distance);
  const int octave = std::bit_width(distance) - 5;  // 16..31: 0
  const uint64_t eighth = (distance >> (octave + 1)) & 7;
  return kExact + 8 * static_cast<size_t>(octave) + static_cast<size_t>(eighth);
}

uint64_t UlpCounts::LargestOf(size_t bucket) {
  if (bucket < kExact) return bucket;
  const size_t octave = (bucket - kExact) / 8, eighth = (bucket - kExact) % 8;
  return ((uint64_t{8 + eighth + 1}) << (octave + 1)) - 1;
}

void UlpCounts::Add(uint64_t distance) {
  ++buckets_[BucketOf(distance)];
  ++count_;
  max_ = std::max(max_, distance);
}

void UlpCounts::Merge(const UlpCounts& other) {
  for (size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
}

uint64_t UlpCounts::Quantile(double fraction) const {
  const auto wanted = static_cast<int64_t>(std::ceil(fraction * static_cast<double>(count_)));
  int64_t seen = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= wanted) return std::min(LargestOf(i), max_);
  }
  return max_;
}

uint64_t UlpDistance(DType dtype, double a, double b) {
  if (Same(a, b)) return 0;
  if (std::isnan(a) || std::isnan(b)) return kFurthest;
  if (!IsFloat(dtype)) return static_cast<uint64_t>(std::fabs(a - b));
  const int64_t from = Ordered(dtype, a), to = Ordered(dtype, b);
  return static_cast<uint64_t>(from < to ? to - from : from - to);
}

Difference CompareOutputs(const std::vector<Expectation>& expectations,
                          const std::vector<Output>& a, const std::vector<Output>& b) {
  Difference difference;
  for (size_t i = 0; i < expectations.size(); ++i) {
    if (i < a.size() && i < b.size()) {
      Compare(expectations[i], a[i], b[i], difference);
    } else {
      difference.problem = absl::StrCat(expectations[i].operand, ": there is no output");
      difference.worst_ratio = kInfinity;
    }
  }
  return difference;
}

void PairRows::Add(const std::string& op, const std::string& isa, const std::string& dtype,
                   const std::string& case_text, const std::vector<Expectation>& expectations,
                   const std::vector<DeviceRun>& runs) {
  for (const DeviceRun& a : runs) {
    for (const DeviceRun& b : runs) {
      if (&b <= &a || a.device == b.device) continue;
      PairRow& row = Row(op, isa, dtype, a, b);
      ++row.cases;
      const auto unsupported = [](const DeviceRun& run) {
        return run.outcome.kind == Outcome::Kind::kUnsupported;
      };
      if (unsupported(a) || unsupported(b)) {
        ++row.unsupported;
        const DeviceRun& by = unsupported(a) ? a : b;
        if (row.first_unsupported.empty()) {
          row.first_unsupported = absl::StrCat(by.device, " ", by.kernel, ": ", by.outcome.message);
        }
        continue;
      }
      Difference difference = CompareOutputs(expectations, a.outcome.outputs, b.outcome.outputs);
      for (const DeviceRun* run : {&a, &b}) {
        if (!run->outcome.failed() || !run->outcome.outputs.empty()) continue;
        difference.problem = absl::StrCat(run->device, " ", run->kernel, " left no result");
      }
      row.worst_ratio = std::max(row.worst_ratio, difference.worst_ratio);
      row.max_abs_difference = std::max(row.max_abs_difference, difference.max_abs);
      row.relative_l2 = std::max(row.relative_l2, difference.relative_l2);
      row.ulps.Merge(difference.ulps);
      if (difference.problem.empty()) {
        ++row.passed;
        continue;
      }
      ++row.failed;
      if (!row.first_failure.empty()) continue;
      row.first_failure =
          absl::StrCat(difference.problem, "\n  reproduce: tandem check --devices ", a.device, ",",
                       b.device, " --kernel ", a.kernel,
                       a.kernel == b.kernel ? std::string() : absl::StrCat(" --kernel ", b.kernel),
                       " --case '", case_text, "'");
    }
  }
}

PairRow& PairRows::Row(const std::string& op, const std::string& isa, const std::string& dtype,
                       const DeviceRun& a, const DeviceRun& b) {
  // The latest rows are the likeliest.
  for (auto row = rows_.rbegin(); row != rows_.rend(); ++row) {
    if (row->kernel_a == a.kernel && row->kernel_b == b.kernel && row->dtype == dtype &&
        row->op == op && row->isa == isa && row->device_a == a.device &&
        row->device_b == b.device) {
      return *row;
    }
  }
  PairRow& row = rows_.emplace_back();
  row.op = op;
  row.isa = isa;
  row.dtype = dtype;
  row.device_a = a.device;
  row.kernel_a = a.kernel;
  row.device_b = b.device;
  row.kernel_b = b.kernel;
  return row;
}

}  // namespace tandem::cases
