#include "tests/cases/run.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

// "[1, 0, 3]" of a row-major index.
std::string IndexText(const Shape& shape, int64_t i) {
  std::string text = "]";
  for (int axis = shape.rank - 1; axis >= 0; --axis) {
    text = absl::StrCat(axis ? ", " : "[", i % shape[axis]) + text;
    i /= shape[axis];
  }
  return text;
}

// The sign of a NaN says nothing.
std::string Number(double x) { return std::isnan(x) ? "nan" : absl::StrFormat("%.9g", x); }

std::string CompareBytes(const Expectation& expectation, const TensorView& got) {
  const int64_t block = BlockLength(got.dtype);
  const auto width = static_cast<size_t>(BlockBytes(got.dtype));
  size_t at = 0;
  int64_t element = 0;
  std::string problem;
  reference::ForEachOffset(got, [&](int64_t offset) {
    const int64_t own = element++;
    if (offset % block != 0 || !problem.empty()) return;
    const char* bytes = static_cast<const char*>(got.data) + ByteOffset(got.dtype, offset);
    if (at + width > expectation.bytes.size() ||
        std::memcmp(bytes, &expectation.bytes[at], width) != 0) {
      problem = absl::StrCat(expectation.operand, IndexText(got.shape, own),
                             ": bytes differ from the expected ones");
    }
    at += width;
  });
  return problem;
}

Output Kept(const TensorView& view) {
  Output output{.dtype = view.dtype, .shape = view.shape, .bytes = {}};
  const int64_t block = BlockLength(view.dtype);
  reference::ForEachOffset(view, [&](int64_t offset) {
    if (offset % block != 0) return;
    const auto* begin = static_cast<const std::byte*>(view.data) + ByteOffset(view.dtype, offset);
    output.bytes.insert(output.bytes.end(), begin, begin + BlockBytes(view.dtype));
  });
  return output;
}

}  // namespace

TensorView Output::view() const {
  return MakeView(const_cast<std::byte*>(bytes.data()), dtype, shape);
}

std::vector<double> AllowedErrors(const std::vector<double>& oracle,
                                  const std::vector<double>& naive, DType out, double floor) {
  double naive_error = 0.0;
  for (size_t i = 0; i < oracle.size(); ++i) {
    const double error = std::fabs(naive[i] - oracle[i]);
    if (std::isfinite(error)) naive_error = std::max(naive_error, error);
  }
  std::vector<double> allowed(oracle.size());
  for (size_t i = 0; i < oracle.size(); ++i) {
    allowed[i] = 2.0 * naive_error + reference::HalfUlp(out, oracle[i]) + floor;
  }
  return allowed;
}

std::string Compare(const Expectation& expectation, const TensorView& got, Outcome& outcome) {
  if (!expectation.bytes.empty()) return CompareBytes(expectation, got);
  const std::vector<double> values = reference::ReadAll(got);
  if (values.size() != expectation.expected.size()) {
    return absl::StrCat(expectation.operand, ": the case expects ", expectation.expected.size(),
                        " elements of ", values.size());
  }
  double error_squares = 0.0, squares = 0.0, worst = 0.0;
  size_t worst_at = values.size();
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = expectation.expected[i];
    const double allowed = expectation.allowed[expectation.allowed.size() == 1 ? 0 : i];
    double ratio = 0.0;
    if (std::isfinite(expected) && std::isfinite(values[i])) {
      const double error = std::fabs(values[i] - expected);
      error_squares += error * error;
      squares += expected * expected;
      outcome.max_abs_error = std::max(outcome.max_abs_error, error);
      if (error > 0.0) {
        ratio = allowed > 0.0 ? error / allowed : std::numeric_limits<double>::infinity();
      }
    } else if (std::isnan(expected) ? !std::isnan(values[i]) : values[i] != expected) {
      ratio = std::numeric_limits<double>::infinity();
    }
    if (ratio > worst) {
      worst = ratio;
      worst_at = i;
    }
  }
  outcome.worst_ratio = std::max(outcome.worst_ratio, worst);
  const double relative_l2 = squares > 0.0 ? std::sqrt(error_squares / squares) : 0.0;
  outcome.relative_l2 = std::max(outcome.relative_l2, relative_l2);
  if (worst > 1.0) {
    return absl::StrCat(
        expectation.operand, IndexText(got.shape, static_cast<int64_t>(worst_at)), ": got ",
        Number(values[worst_at]), ", expected ", Number(expectation.expected[worst_at]),
        ", allowed error ",
        Number(expectation.allowed[expectation.allowed.size() == 1 ? 0 : worst_at]));
  }
  if (relative_l2 > expectation.max_relative_l2) {
    return absl::StrCat(expectation.operand, ": relative L2 error ", Number(relative_l2),
                        ", allowed ", Number(expectation.max_relative_l2));
  }
  return "";
}

absl::Status Judge(const Target& target, const std::vector<Expectation>& expectations,
                   const Workspace& workspace, const GuardedWorkspace& scratch,
                   bool nothing_written, DeviceOperands& device, Outcome& outcome) {
  TANDEM_ASSIGN_OR_RETURN(const std::optional<std::string> damage,
                          device.Download(*target.backend, *target.stream));
  TANDEM_ASSIGN_OR_RETURN(const bool intact, scratch.Intact(*target.backend, *target.stream));
  outcome.output_hash = device.OutputHash();
  std::string problem = damage.value_or("");
  if (problem.empty() && !intact) problem = "bytes beyond the workspace were changed";
  if (problem.empty() && !workspace.ok()) {
    problem = absl::StrCat("the kernel took more workspace than the ", scratch.bytes(),
                           " bytes it asked for");
  }
  if (problem.empty() && nothing_written && device.OutputHash() != device.InitialHash()) {
    problem = "run failed as expected, but had already written to an output";
  }
  for (const Expectation& expectation : expectations) {
    const TensorView result = device.Result(expectation.operand);
    if (target.keep_outputs) outcome.outputs.push_back(Kept(result));
    if (!problem.empty() || nothing_written) continue;
    problem = Compare(expectation, result, outcome);
  }
  outcome.kind = problem.empty() ? Outcome::Kind::kPassed : Outcome::Kind::kFailed;
  outcome.message = problem;
  return absl::OkStatus();
}

}  // namespace tandem::cases
