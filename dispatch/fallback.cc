#include "dispatch/fallback.h"

#include <optional>
#include <string>
#include <utility>

#include "core/status.h"

namespace tandem {
namespace {

// Gives back what is kept on the GPU for later calls: workspace, and blocks of the allocator.
void ReleaseKept(ContextDevice& gpu) {
  gpu.stream->Synchronize().IgnoreError();  // a lost device says so at the next call
  gpu.scratch.reset();
  gpu.landing.reset();
  gpu.backend->ReleaseUnused().IgnoreError();
}

absl::Status OperandsLost(const std::string& op, Device device, const absl::Status& status) {
  return absl::UnavailableError(absl::StrCat(op, ": its operands are in the memory of ",
                                             Name(device), ", which is lost, and they with it (",
                                             Message(status), ")"));
}

}  // namespace

absl::Status FallBack(Context& context, const OpFacts& facts, bool forced, absl::Status status,
                      absl::FunctionRef<absl::Status()> again,
                      absl::FunctionRef<absl::Status()> on_cpu, int64_t& event) {
  std::optional<FaultCause> cause = CauseOf(status);
  if (!cause) return status;
  ContextDevice& gpu = *context.device(DeviceKind::kCuda);
  const Device device = gpu.backend->device();
  const std::string op(Name(facts.op));
  const bool resident = facts.operands.kind == DeviceKind::kCuda;
  DeviceHealth& health = context.health();
  const auto report = [&](FaultRemedy remedy) {
    event = context.ReportFault({op, device, *cause, remedy, Message(status)}, resident);
  };
  if (*cause == FaultCause::kDeviceLost) health.Lose(Message(status));
  if (health.recording()) return status;
  if (resident && *cause == FaultCause::kDeviceLost) {
    report(FaultRemedy::kOperandsLost);
    return OperandsLost(op, device, status);
  }
  if (forced) {
    report(FaultRemedy::kFailed);
    return status;
  }
  if (*cause == FaultCause::kOutOfMemory) {
    health.CountRetry();
    ReleaseKept(gpu);
    absl::Status second = again();
    if (second.ok()) {
      report(FaultRemedy::kRetried);
      return second;
    }
    const std::optional<FaultCause> next = CauseOf(second);
    if (!next) return second;
    cause = next;
    status = std::move(second);
    if (*cause == FaultCause::kDeviceLost) {
      health.Lose(Message(status));
      if (resident) {
        report(FaultRemedy::kOperandsLost);
        return OperandsLost(op, device, status);
      }
    }
  }
  health.Failed(facts.op, facts.bytes, *cause);
  absl::Status there = on_cpu();
  if (there.ok()) {
    report(FaultRemedy::kRanOnCpu);
    return there;
  }
  if (resident && CauseOf(there) == FaultCause::kDeviceLost) {  // while they were fetched
    health.Lose(Message(there));
    cause = FaultCause::kDeviceLost;
    status = OperandsLost(op, device, there);
    report(FaultRemedy::kOperandsLost);
    return status;
  }
  report(FaultRemedy::kFailed);
  return absl::Status(status.code(),
                      absl::StrCat(Message(status), "; on the CPU: ", Message(there)));
}

bool DeviceFailed(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsResourceExhausted(status) ||
         absl::IsUnavailable(status);
}

void NoteSuccess(Context& context, const OpFacts& facts, const Decision& decision) {
  using Rule = Decision::Rule;
  if (decision.device == DeviceKind::kCuda) {
    context.health().Succeeded(facts.op, facts.bytes);
  } else if (decision.rule == Rule::kGpuLost || decision.rule == Rule::kGpuBackOff) {
    context.health().Avoided(facts.op, facts.bytes);
  }
}

absl::Status WaitForResult(Context& context, const OpFacts& facts) {
  Stream& stream = *context.device(DeviceKind::kCuda)->stream;
  absl::Status status = stream.Synchronize();
  if (status.ok()) return status;
  if (CauseOf(status) == FaultCause::kDeviceLost) context.health().Lose(Message(status));
  // What went there and came back is complete: its own copies have been waited for.
  if (facts.operands.kind == DeviceKind::kCpu) return absl::OkStatus();
  return stream.Synchronize();
}

}  // namespace tandem
