// The walk of one op call, the same for every op: Validate, decide, select, copy the operands if
// they are on another device, size the workspace, run, trace. What becomes of a call that fails on
// the GPU is in dispatch/fallback.h.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "core/status.h"
#include "dispatch/context.h"
#include "dispatch/facts.h"
#include "dispatch/fallback.h"
#include "dispatch/operands.h"
#include "dispatch/registry.h"
#include "dispatch/transfer.h"

namespace tandem {

// A device, a kernel, and the reasons: what RunOp would do with these arguments.
template <typename Args>
struct Plan {
  Decision decision;
  const Kernel<Args>* kernel = nullptr;
  const KernelPreference* preference = nullptr;  // nullptr: the order of the list decided
};

namespace internal {

template <typename Args>
absl::StatusOr<const Kernel<Args>*> SelectOn(Context& context, DeviceKind device, const Args& args,
                                             const KernelPreference* preference) {
  KernelContext kernel_context;
  kernel_context.stream = context.device(device)->stream.get();
  return Select(kernel_context, device, args, context.forced_kernel(Args::kOp),
                preference == nullptr ? std::span<const uint8_t>() : preference->order);
}

// The call's arguments as they will be on `device`.
template <typename Args>
void Move(OwnedArgs<Args>& owned, Transfer& transfer, Device device) {
  owned.ForEach([&](TensorView& view, Access access) { transfer.Add(view, access, device); });
  DropPackedWeights(owned.args);  // the matrix itself is what is copied
}

}  // namespace internal

// The plan that carries out a decision. Unimplemented: its device has no kernel for the arguments.
template <typename Args>
absl::StatusOr<Plan<Args>> PlanOn(Context& context, const Args& args, const OpFacts& facts,
                                  const Decision& decision) {
  Plan<Args> plan;
  plan.decision = decision;
  if (decision.device == facts.operands.kind) {
    plan.preference = context.kernel_preferences().Find(facts, decision.device);
    TANDEM_ASSIGN_OR_RETURN(plan.kernel,
                            internal::SelectOn(context, decision.device, args, plan.preference));
    return plan;
  }
  if (HasOnlyPackedWeights(args)) {
    return Unimplemented("packed weights cannot be copied to another device");
  }
  OwnedArgs<Args> owned(args);
  Transfer transfer;
  internal::Move(owned, transfer, context.device(decision.device)->backend->device());
  plan.preference = context.kernel_preferences().Find(facts, decision.device);
  TANDEM_ASSIGN_OR_RETURN(
      plan.kernel, internal::SelectOn(context, decision.device, owned.args, plan.preference));
  return plan;
}

// Unimplemented if no kernel of the forced device, or of the operands' own, accepts the arguments.
template <typename Args>
absl::StatusOr<Plan<Args>> MakePlan(Context& context, const Args& args, const OpFacts& facts) {
  Decision decision = context.Decide(facts);
  absl::StatusOr<Plan<Args>> plan = PlanOn(context, args, facts, decision);
  if (plan.ok() || decision.device == facts.operands.kind ||
      decision.rule == Decision::Rule::kForced) {
    return plan;
  }
  decision.device = facts.operands.kind;
  decision.rule = Decision::Rule::kNoKernel;
  return PlanOn(context, args, facts, decision);
}

namespace internal {

// Runs on the plan's device, where the operands are.
template <typename Args>
absl::Status RunThere(Context& context, const Plan<Args>& plan, const Args& args) {
  ContextDevice& device = *context.device(plan.decision.device);
  KernelContext kernel_context;
  kernel_context.stream = device.stream.get();
  const int64_t bytes = plan.kernel->workspace_bytes(kernel_context, args);
  TANDEM_RETURN_IF_ERROR(context.ReserveWorkspace(plan.decision.device, bytes));
  Workspace workspace(device.scratch ? device.scratch->data() : nullptr, bytes);
  kernel_context.workspace = &workspace;
  device.backend->BeginRange(Name(Args::kOp).data());
  absl::Status status = plan.kernel->run(kernel_context, args);
  device.backend->EndRange();
  return status;
}

// Runs on the plan's device, with copies of the operands.
template <typename Args>
absl::Status RunElsewhere(Context& context, const Plan<Args>& plan, const Args& args,
                          DeviceKind home, int64_t& moved_bytes) {
  ContextDevice& from = *context.device(home);
  ContextDevice& to = *context.device(plan.decision.device);
  OwnedArgs<Args> owned(args);
  Transfer transfer;
  Move(owned, transfer, to.backend->device());
  absl::Status status = transfer.Upload(from, to);
  if (status.ok()) status = RunThere(context, plan, owned.args);
  if (status.ok()) status = transfer.Download(to, from);
  // What the failed call left on the stream must not come up in the next one.
  if (!status.ok()) context.device(DeviceKind::kCuda)->stream->Synchronize().IgnoreError();
  moved_bytes += transfer.bytes();
  return status;
}

template <typename Args>
absl::Status RunOnce(Context& context, const Plan<Args>& plan, const Args& args,
                     const OpFacts& facts, int64_t& moved_bytes) {
  return plan.decision.device == facts.operands.kind
             ? RunThere(context, plan, args)
             : RunElsewhere(context, plan, args, facts.operands.kind, moved_bytes);
}

// What follows a run that failed, or that succeeded while something is wrong with the GPU. `plan`
// becomes the one that was carried out in the end.
template <typename Args>
[[gnu::noinline]] absl::Status AfterRun(Context& context, Plan<Args>& plan, const Args& args,
                                        const OpFacts& facts, absl::Status status,
                                        int64_t& moved_bytes, int64_t& fault) {
  if (status.ok()) {
    NoteSuccess(context, facts, plan.decision);
    return status;
  }
  if (plan.decision.device == DeviceKind::kCpu && facts.operands.kind == DeviceKind::kCpu) {
    return status;
  }
  const bool forced = plan.decision.rule == Decision::Rule::kForced ||
                      plan.decision.device == DeviceKind::kCpu ||
                      !context.forced_kernel(Args::kOp).empty();
  return FallBack(
      context, facts, forced, std::move(status),
      [&] { return RunOnce(context, plan, args, facts, moved_bytes); },
      [&]() -> absl::Status {
        TANDEM_ASSIGN_OR_RETURN(
            plan, PlanOn(context, args, facts, {DeviceKind::kCpu, Decision::Rule::kGpuFailed}));
        return RunOnce(context, plan, args, facts, moved_bytes);
      },
      fault);
}

}  // namespace internal

// Carries out a plan for these arguments, which are valid, and traces it.
template <typename Args>
absl::Status RunPlan(Context& context, Plan<Args> plan, const Args& args, const OpFacts& facts) {
  int64_t moved_bytes = 0, fault = 0;
  const bool traces = context.trace().enabled(), learns = context.Learns(plan.decision);
  const int64_t start_ns = traces || learns ? context.trace().Now() : 0;
  absl::Status status = internal::RunOnce(context, plan, args, facts, moved_bytes);
  if (!status.ok() || !context.health().calm()) {
    status = internal::AfterRun(context, plan, args, facts, std::move(status), moved_bytes, fault);
  }
  // A call that met a fault says nothing about the time that others will take.
  const bool typical = status.ok() && fault == 0;
  const bool queued =
      plan.decision.device == DeviceKind::kCuda && plan.decision.device == facts.operands.kind;
  if (!traces) {
    if (!learns || !typical) return status;
    if (queued) {
      context.Queued(plan.decision);
    } else {
      context.Finished(plan.decision, static_cast<double>(context.trace().Now() - start_ns) * 1e-9);
    }
    return status;
  }
  // A trace says how long the work took, not how long it took to ask for it.
  if (status.ok() && plan.decision.device == DeviceKind::kCuda) {
    status = WaitForResult(context, facts);
  }
  TraceRecord record;
  record.facts = facts;
  record.decision = plan.decision;
  record.device = context.device(plan.decision.device)->backend->device();
  record.cuda_present = context.device(DeviceKind::kCuda) != nullptr;
  record.kernel = plan.kernel->name;
  record.start_ns = start_ns;
  record.duration_ns = context.trace().Now() - start_ns;
  record.moved_bytes = moved_bytes;
  record.fault = fault;
  if (typical && status.ok()) {
    context.Finished(plan.decision, static_cast<double>(record.duration_ns) * 1e-9);
  }
  context.trace().Add(record);
  return status;
}

template <typename Args>
absl::Status RunOp(Context& context, const Args& args) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  const OpFacts facts = FactsOf(args);
  if (!context.has(facts.operands)) {
    return InvalidArgument("operands live on ", Name(facts.operands),
                           ", which this context does not have");
  }
  TANDEM_ASSIGN_OR_RETURN(Plan<Args> plan, MakePlan(context, args, facts));
  return RunPlan(context, std::move(plan), args, facts);
}

}  // namespace tandem
