// Running an op on the device where its operands are, whatever the policy says: for those who have
// decided already (attention and products on two devices at once). What fails is the caller's: it
// knows what of a shared call has been done (FallBack in dispatch/fallback.h).
#pragma once

#include <algorithm>
#include <memory>
#include <optional>

#include "core/status.h"
#include "dispatch/run.h"

namespace tandem {

// An event on the stream of the context's GPU; nullptr: it could not be made.
std::unique_ptr<Event> MarkOnGpu(Context& context);

// What a part of a shared call takes on a GPU, by the GPU's own clock: nobody waits for it, and
// what the host does meanwhile does not count.
class PartClock {
 public:
  // Before and after the work is put on the stream. An event that cannot be made is no error: then
  // nothing is known.
  void Begin(Context& context, const Decision& decision);
  void End(Context& context);
  // Seconds that the work took, once, if it is finished; from then on nothing. nullopt: not known.
  // Corrects what is predicted of such calls.
  std::optional<double> Take(Context& context);
  void Forget() {
    begin_ = nullptr;
    end_ = nullptr;
  }

 private:
  Decision decision_;
  std::unique_ptr<Event> begin_, end_;
};

// A part of a shared call that is on a GPU's stream.
struct QueuedPart {
  TraceRecord record;  // where the context traces: without a duration
  PartClock clock;
};

// `queued`: work on a GPU is not waited for, its record is left here, for Finished.
// `least_seconds`: it is predicted to take no less, for the other device reads the same memory
// meanwhile. What the CPU takes, or a GPU that is not waited for, corrects what is predicted of
// such calls. InvalidArgument: bad arguments, or a device that the context does not have.
// Unimplemented: it has no kernel for them.
template <typename Args>
absl::Status RunHere(Context& context, const Args& args, QueuedPart* queued = nullptr,
                     double least_seconds = 0.0) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  const OpFacts facts = FactsOf(args);
  if (!context.has(facts.operands)) {
    return InvalidArgument("operands live on ", Name(facts.operands),
                           ", which this context does not have");
  }
  const DeviceKind kind = facts.operands.kind;
  Plan<Args> plan;
  plan.decision = context.StayWith(facts);
  double& predicted = plan.decision.predicted[kind].call_seconds;
  predicted = std::max(predicted, least_seconds);
  plan.preference = context.kernel_preferences().Find(facts, kind);
  TANDEM_ASSIGN_OR_RETURN(plan.kernel, internal::SelectOn(context, kind, args, plan.preference));
  const bool on_gpu = kind == DeviceKind::kCuda, traces = context.trace().enabled();
  const bool learns = context.Learns(plan.decision);
  if (!traces && !learns) return internal::RunThere(context, plan, args);
  if (on_gpu && queued != nullptr) queued->clock.Begin(context, plan.decision);
  const int64_t start_ns = context.trace().Now();
  absl::Status status = internal::RunThere(context, plan, args);
  if (on_gpu && queued != nullptr) queued->clock.End(context);
  if (!traces) {
    if (status.ok() && !on_gpu) {
      context.Finished(plan.decision, static_cast<double>(context.trace().Now() - start_ns) * 1e-9);
    }
    return status;
  }
  TraceRecord record;
  record.facts = facts;
  record.decision = plan.decision;
  record.device = context.device(kind)->backend->device();
  record.cuda_present = context.device(DeviceKind::kCuda) != nullptr;
  record.kernel = plan.kernel->name;
  record.start_ns = start_ns;
  if (status.ok() && queued != nullptr && on_gpu) {
    queued->record = record;
    return status;
  }
  if (status.ok() && on_gpu) status = context.device(kind)->stream->Synchronize();
  record.duration_ns = context.trace().Now() - record.start_ns;
  if (status.ok() && !on_gpu) {
    context.Finished(plan.decision, static_cast<double>(record.duration_ns) * 1e-9);
  }
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

// The work that RunHere left has been waited for.
void Finished(Context& context, QueuedPart& queued);

}  // namespace tandem
