// The walk of one op call, the same for every op: Validate, decide, select, copy the operands if
// they are on another device, size the workspace, run, trace.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include "core/status.h"
#include "dispatch/context.h"
#include "dispatch/facts.h"
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

// Unimplemented if no kernel of the forced device, or of the operands' own, accepts the arguments.
template <typename Args>
absl::StatusOr<Plan<Args>> MakePlan(Context& context, const Args& args, const OpFacts& facts) {
  Plan<Args> plan;
  plan.decision = context.Decide(facts);
  if (plan.decision.device != facts.operands.kind) {
    const bool forced = plan.decision.rule == Decision::Rule::kForced;
    absl::StatusOr<const Kernel<Args>*> kernel =
        Unimplemented("packed weights cannot be copied to another device");
    if (!HasOnlyPackedWeights(args)) {
      OwnedArgs<Args> owned(args);
      Transfer transfer;
      internal::Move(owned, transfer, context.device(plan.decision.device)->backend->device());
      plan.preference = context.kernel_preferences().Find(facts, plan.decision.device);
      kernel = internal::SelectOn(context, plan.decision.device, owned.args, plan.preference);
    }
    if (kernel.ok() || forced) {
      TANDEM_ASSIGN_OR_RETURN(plan.kernel, std::move(kernel));
      return plan;
    }
    plan.decision.device = facts.operands.kind;
    plan.decision.rule = Decision::Rule::kNoKernel;
  }
  plan.preference = context.kernel_preferences().Find(facts, plan.decision.device);
  TANDEM_ASSIGN_OR_RETURN(plan.kernel,
                          internal::SelectOn(context, plan.decision.device, args, plan.preference));
  return plan;
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
  moved_bytes = transfer.bytes();
  return status;
}

}  // namespace internal

template <typename Args>
absl::Status RunOp(Context& context, const Args& args) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  const OpFacts facts = FactsOf(args);
  if (!context.has(facts.operands)) {
    return InvalidArgument("operands live on ", Name(facts.operands),
                           ", which this context does not have");
  }
  TANDEM_ASSIGN_OR_RETURN(const Plan<Args> plan, MakePlan(context, args, facts));
  const bool elsewhere = plan.decision.device != facts.operands.kind;
  int64_t moved_bytes = 0;
  const auto run = [&] {
    return elsewhere ? internal::RunElsewhere(context, plan, args, facts.operands.kind, moved_bytes)
                     : internal::RunThere(context, plan, args);
  };
  if (!context.trace().enabled()) {
    if (!context.Learns(plan.decision)) return run();
    const int64_t begin = context.trace().Now();
    absl::Status status = run();
    if (!status.ok()) return status;
    if (elsewhere || plan.decision.device == DeviceKind::kCpu) {
      context.Finished(plan.decision, static_cast<double>(context.trace().Now() - begin) * 1e-9);
    } else {
      context.Queued(plan.decision);
    }
    return status;
  }
  TraceRecord record;
  record.facts = facts;
  record.decision = plan.decision;
  record.device = context.device(plan.decision.device)->backend->device();
  record.cuda_present = context.device(DeviceKind::kCuda) != nullptr;
  record.kernel = plan.kernel->name;
  record.start_ns = context.trace().Now();
  absl::Status status = run();
  // A trace says how long the work took, not how long it took to ask for it.
  if (status.ok() && plan.decision.device == DeviceKind::kCuda) {
    status = context.device(DeviceKind::kCuda)->stream->Synchronize();
  }
  record.duration_ns = context.trace().Now() - record.start_ns;
  record.moved_bytes = moved_bytes;
  if (status.ok()) {
    context.Finished(plan.decision, static_cast<double>(record.duration_ns) * 1e-9);
  }
  context.trace().Add(record);
  return status;
}

}  // namespace tandem
