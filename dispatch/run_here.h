// Running an op on the device where its operands are, whatever the policy says: for those who have
// decided already (attention and products on two devices at once). What fails is the caller's: it
// knows what of a shared call has been done (FallBack in dispatch/fallback.h).
#pragma once

#include "core/status.h"
#include "dispatch/run.h"

namespace tandem {

// `queued`: where the context traces, work on a GPU is not waited for; its record, without a
// duration, is left here, for Finished. InvalidArgument: bad arguments, or a device that the
// context does not have. Unimplemented: it has no kernel for them.
template <typename Args>
absl::Status RunHere(Context& context, const Args& args, TraceRecord* queued = nullptr) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  const OpFacts facts = FactsOf(args);
  if (!context.has(facts.operands)) {
    return InvalidArgument("operands live on ", Name(facts.operands),
                           ", which this context does not have");
  }
  const DeviceKind kind = facts.operands.kind;
  Plan<Args> plan;
  plan.decision = {kind, Decision::Rule::kFollowsOperands};
  plan.preference = context.kernel_preferences().Find(facts, kind);
  TANDEM_ASSIGN_OR_RETURN(plan.kernel, internal::SelectOn(context, kind, args, plan.preference));
  if (!context.trace().enabled()) return internal::RunThere(context, plan, args);
  TraceRecord record;
  record.facts = facts;
  record.decision = plan.decision;
  record.device = context.device(kind)->backend->device();
  record.cuda_present = context.device(DeviceKind::kCuda) != nullptr;
  record.kernel = plan.kernel->name;
  record.start_ns = context.trace().Now();
  absl::Status status = internal::RunThere(context, plan, args);
  if (status.ok() && queued != nullptr && kind == DeviceKind::kCuda) {
    *queued = record;
    return status;
  }
  if (status.ok() && kind == DeviceKind::kCuda) {
    status = context.device(kind)->stream->Synchronize();
  }
  record.duration_ns = context.trace().Now() - record.start_ns;
  context.trace().Add(record);
  return status;
}

// Runs a call on the CPU of whose operands some are in GPU memory: these are fetched, and what it
// writes there is put back. No kernel runs on the GPU. After an error nothing has been written.
template <typename Args>
absl::Status RunFetched(Context& context, const Args& args) {
  ContextDevice& cpu = *context.device(DeviceKind::kCpu);
  ContextDevice* gpu = context.device(DeviceKind::kCuda);
  if (gpu == nullptr) return RunHere(context, args);
  OwnedArgs<Args> owned(args);
  Transfer transfer;
  internal::Move(owned, transfer, cpu.backend->device());
  absl::Status status = transfer.Upload(*gpu, cpu);
  if (status.ok()) status = RunHere(context, owned.args);
  if (status.ok()) status = transfer.Download(cpu, *gpu);
  return status;
}

// The work of a record that RunHere left has been waited for.
inline void Finished(Context& context, TraceRecord& queued) {
  if (!context.trace().enabled() || queued.kernel.empty()) return;
  queued.duration_ns = context.trace().Now() - queued.start_ns;
  context.trace().Add(queued);
  queued.kernel = {};
}

}  // namespace tandem
