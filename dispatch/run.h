// The walk of one op call, the same for every op: Validate, decide, select, size the workspace,
// run, trace.
#pragma once

#include <cstdint>
#include <span>

#include "core/status.h"
#include "dispatch/context.h"
#include "dispatch/facts.h"
#include "dispatch/registry.h"

namespace tandem {

// A device, a kernel, and the reasons: what RunOp would do with these arguments.
template <typename Args>
struct Plan {
  Decision decision;
  const Kernel<Args>* kernel = nullptr;
  const KernelPreference* preference = nullptr;  // nullptr: the order of the list decided
};

template <typename Args>
absl::StatusOr<Plan<Args>> MakePlan(Context& context, const Args& args, const OpFacts& facts) {
  DecisionInputs inputs;
  inputs.facts = facts;
  inputs.cuda_present = context.device(DeviceKind::kCuda) != nullptr;
  inputs.forced_device = context.options().device;
  Decision decision = Choose(inputs, context.options().policy);
  if (decision.device != facts.operands.kind) {
    // Operands are not moved between devices yet.
    if (decision.rule == Decision::Rule::kForced) {
      return Unimplemented("device ", std::string(Name(decision.device)),
                           " is forced, but the operands live on ", Name(facts.operands));
    }
    decision = {facts.operands.kind, Decision::Rule::kFollowsOperands};
  }
  KernelContext kernel_context;
  kernel_context.stream = context.device(decision.device)->stream.get();
  const KernelPreference* preference = context.kernel_preferences().Find(facts, decision.device);
  TANDEM_ASSIGN_OR_RETURN(
      const Kernel<Args>* kernel,
      Select(kernel_context, decision.device, args, context.forced_kernel(Args::kOp),
             preference == nullptr ? std::span<const uint8_t>() : preference->order));
  return Plan<Args>{decision, kernel, preference};
}

template <typename Args>
absl::Status RunOp(Context& context, const Args& args) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  const OpFacts facts = FactsOf(args);
  if (context.device(facts.operands.kind) == nullptr) {
    return InvalidArgument("operands live on ", Name(facts.operands),
                           ", which this context does not have");
  }
  TANDEM_ASSIGN_OR_RETURN(const Plan<Args> plan, MakePlan(context, args, facts));

  ContextDevice& device = *context.device(plan.decision.device);
  KernelContext kernel_context;
  kernel_context.stream = device.stream.get();
  const int64_t bytes = plan.kernel->workspace_bytes(kernel_context, args);
  TANDEM_RETURN_IF_ERROR(context.ReserveWorkspace(plan.decision.device, bytes));
  Workspace workspace(device.scratch ? device.scratch->data() : nullptr, bytes);
  kernel_context.workspace = &workspace;

  if (!context.trace().enabled()) return plan.kernel->run(kernel_context, args);
  TraceRecord record;
  record.facts = facts;
  record.decision = plan.decision;
  record.cuda_present = context.device(DeviceKind::kCuda) != nullptr;
  record.kernel = plan.kernel->name;
  record.start_ns = context.trace().Now();
  absl::Status status = plan.kernel->run(kernel_context, args);
  record.duration_ns = context.trace().Now() - record.start_ns;
  context.trace().Add(record);
  return status;
}

}  // namespace tandem
