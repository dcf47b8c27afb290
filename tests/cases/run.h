// Running one case on one kernel, and judging the result.
//
// A case is plain data. Beside its fields (see fields.h) it has
//   using Args = ...;                                the op's arguments
//   Operands MakeOperands() const;                   inputs and outputs, by name
//   Args Bind(const Views&) const;                   arguments that refer to them
//   std::vector<Expectation> Expect(const Args&) const;   what must come out, given host views
//   std::string DTypeLabel() const;                  "f16", "f32 x q8_0": one row of the report
//   std::vector<std::string> PackedOperands() const; optional: weights to pack first, if the
//                                                    device can
//   absl::StatusCode ExpectedCode() const;           optional: run must fail so, writing nothing
//   static std::vector<Case> Grid(GridSize);         the fixed cases
//   static Case Random(Rng&);                        a property case
// Prepare() computes the operands and expectations once; every kernel is then run on them.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/kernel.h"
#include "core/ops/matmul.h"
#include "tests/cases/fields.h"
#include "tests/cases/operands.h"

namespace tandem::cases {

enum class GridSize : uint8_t { kShort, kFull };

// What one output must be. Element i is right when |got - expected[i]| <= allowed[i]; NaN and
// infinities must be themselves.
struct Expectation {
  std::string operand;
  std::vector<double> expected = {};  // row-major
  std::vector<double> allowed = {};   // as many, or one for all
  double max_relative_l2 = std::numeric_limits<double>::infinity();
  // If not empty the elements, row-major, must be these bytes instead (integers, block formats).
  std::vector<std::byte> bytes = {};
};

// Where a case runs.
struct Target {
  Backend* backend = nullptr;
  Stream* stream = nullptr;
  std::function<absl::StatusOr<std::unique_ptr<PackedWeights>>(const TensorView&)> pack;
  bool keep_outputs = false;  // in the outcome
};

// A copy of what a run left in an output, dense.
struct Output {
  DType dtype = DType::kF32;
  Shape shape = {};
  std::vector<std::byte> bytes = {};
  TensorView view() const;
};

struct Outcome {
  enum class Kind : uint8_t { kPassed, kFailed, kUnsupported };
  Kind kind = Kind::kPassed;
  std::string message;  // what is wrong, with a reproducer; or why it is unsupported
  double max_abs_error = 0.0;
  double relative_l2 = 0.0;
  double worst_ratio = 0.0;          // largest error / allowed
  uint64_t output_hash = 0;          // of the output bits
  std::vector<Output> outputs = {};  // in the order of the expectations, if they are to be kept

  bool passed() const { return kind == Kind::kPassed; }
  bool failed() const { return kind == Kind::kFailed; }
};

template <typename Case>
struct Prepared {
  Case c;
  Operands operands;
  std::vector<Expectation> expectations;
};

// Builds operands and expectations. An error if the case itself is bad.
template <typename Case>
absl::StatusOr<Prepared<Case>> Prepare(const Case& c) {
  Prepared<Case> prepared{c, c.MakeOperands(), {}};
  TANDEM_RETURN_IF_ERROR(prepared.operands.status());
  const Views views(prepared.operands);
  const typename Case::Args args = c.Bind(views);
  TANDEM_RETURN_IF_ERROR(Validate(args));
  prepared.expectations = c.Expect(args);
  return prepared;
}

// allowed = 2 * largest error of the straightforward implementation + one rounding of the output +
// floor. A naive result that is not finite where the oracle is (overflow of the storage format)
// sets no measure and is skipped.
std::vector<double> AllowedErrors(const std::vector<double>& oracle,
                                  const std::vector<double>& naive, DType out, double floor);

// Compares one output with what was expected, updating the outcome's errors. Returns the problem,
// or an empty string.
std::string Compare(const Expectation& expectation, const TensorView& got, Outcome& outcome);

// The part of a run that does not depend on the op: guards, inputs, comparison. Sets the outcome.
absl::Status Judge(const Target& target, const std::vector<Expectation>& expectations,
                   const Workspace& workspace, const GuardedWorkspace& scratch,
                   bool nothing_written, DeviceOperands& device, Outcome& outcome);

template <typename Case>
absl::StatusCode ExpectedCode(const Case& c) {
  if constexpr (requires { c.ExpectedCode(); }) return c.ExpectedCode();
  return absl::StatusCode::kOk;
}

namespace internal {

template <typename Case>
absl::Status Run(const Prepared<Case>& prepared, const Kernel<typename Case::Args>& kernel,
                 const Target& target, Outcome& outcome) {
  TANDEM_ASSIGN_OR_RETURN(
      DeviceOperands device,
      DeviceOperands::Upload(prepared.operands, *target.backend, *target.stream));
  Views views = device.views();
  std::vector<std::unique_ptr<PackedWeights>> packed;
  if constexpr (requires { prepared.c.PackedOperands(); }) {
    for (const std::string& name : prepared.c.PackedOperands()) {
      absl::StatusOr<std::unique_ptr<PackedWeights>> result = Unimplemented("no packing");
      if (target.pack) result = target.pack(views(name));
      // What is multiplied from its stored form is given as it is.
      if (absl::IsUnimplemented(result.status())) continue;
      TANDEM_RETURN_IF_ERROR(result.status());
      packed.push_back(*std::move(result));
      views.AddPacked(name, packed.back().get());
    }
  }
  const typename Case::Args args = prepared.c.Bind(views);
  KernelContext context{.stream = target.stream};
  if (ExpectedCode(prepared.c) != absl::StatusCode::kOk &&
      target.stream->device().kind != DeviceKind::kCpu) {
    outcome = {.kind = Outcome::Kind::kUnsupported,
               .message = "what a kernel finds wrong in device memory is not reported to the host"};
    return absl::OkStatus();
  }
  if (absl::Status status = kernel.supports(context, args); !status.ok()) {
    if (!absl::IsUnimplemented(status)) return status;
    outcome = {.kind = Outcome::Kind::kUnsupported, .message = Message(status)};
    return absl::OkStatus();
  }
  TANDEM_ASSIGN_OR_RETURN(GuardedWorkspace scratch,
                          GuardedWorkspace::Make(*target.backend, *target.stream,
                                                 kernel.workspace_bytes(context, args)));
  Workspace workspace(scratch.data(), scratch.bytes());
  context.workspace = &workspace;
  const absl::Status status = kernel.run(context, args);
  TANDEM_RETURN_IF_ERROR(target.stream->Synchronize());
  const absl::StatusCode expected = ExpectedCode(prepared.c);
  if (status.code() != expected) {
    if (!status.ok()) return status;
    return absl::InternalError("run succeeded, expected " + absl::StatusCodeToString(expected));
  }
  return Judge(target, prepared.expectations, workspace, scratch, !status.ok(), device, outcome);
}

}  // namespace internal

template <typename Case>
Outcome RunPrepared(const Prepared<Case>& prepared, const Kernel<typename Case::Args>& kernel,
                    const Target& target) {
  Outcome outcome;
  if (absl::Status status = internal::Run(prepared, kernel, target, outcome); !status.ok()) {
    outcome.kind = Outcome::Kind::kFailed;
    outcome.message = status.ToString();
  }
  if (outcome.failed()) {
    const Device device = target.backend->device();
    outcome.message += "\n  reproduce: tandem check" +
                       (device.kind == DeviceKind::kCpu ? "" : " --devices " + Name(device)) +
                       " --kernel " + std::string(kernel.name) + " --case '" +
                       CaseText(prepared.c) + "'";
  }
  return outcome;
}

// Prepare and RunPrepared in one.
template <typename Case>
Outcome RunCase(const Case& c, const Kernel<typename Case::Args>& kernel, const Target& target) {
  const absl::StatusOr<Prepared<Case>> prepared = Prepare(c);
  if (!prepared.ok()) {
    return {.kind = Outcome::Kind::kFailed,
            .message = "bad case '" + CaseText(c) + "': " + prepared.status().ToString()};
  }
  return RunPrepared(*prepared, kernel, target);
}

}  // namespace tandem::cases
