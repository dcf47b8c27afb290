#include "dispatch/run_here.h"

#include <utility>

namespace tandem {

std::unique_ptr<Event> MarkOnGpu(Context& context) {
  absl::StatusOr<std::unique_ptr<Event>> event =
      context.device(DeviceKind::kCuda)->stream->Record();
  return event.ok() ? *std::move(event) : nullptr;
}

void PartClock::Begin(Context& context, const Decision& decision) {
  decision_ = decision;
  end_ = nullptr;
  begin_ = MarkOnGpu(context);
}

void PartClock::End(Context& context) {
  if (begin_ != nullptr) end_ = MarkOnGpu(context);
}

std::optional<double> PartClock::Take(Context& context) {
  const std::unique_ptr<Event> begin = std::move(begin_), end = std::move(end_);
  if (begin == nullptr || end == nullptr) return std::nullopt;
  const absl::StatusOr<double> seconds = end->SecondsSince(*begin);
  if (!seconds.ok()) return std::nullopt;  // not finished
  // A prediction is of a call that is asked for and waited for.
  if (context.Learns(decision_)) {
    context.Finished(decision_, *seconds + context.cost_model()->LaunchSeconds(DeviceKind::kCuda));
  }
  return *seconds;
}

void Finished(Context& context, QueuedPart& queued) {
  queued.clock.Take(context);
  TraceRecord& record = queued.record;
  if (!context.trace().enabled() || record.kernel.empty()) return;
  // On the trace's line of time, until it was known to be finished.
  record.duration_ns = context.trace().Now() - record.start_ns;
  context.trace().Add(record);
  record.kernel = {};
}

}  // namespace tandem
