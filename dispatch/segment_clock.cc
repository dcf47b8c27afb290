#include "dispatch/segment_clock.h"

#include <utility>

#include "dispatch/run_here.h"

namespace tandem {

void SegmentClock::Begin(Context& context) {
  Take(context);
  work_.Clear();
  if (!context.predicts() || !context.learns()) return;
  begin_ = MarkOnGpu(context);
  if (begin_ != nullptr) context.CollectQueued(&work_);
}

void SegmentClock::End(Context& context) {
  context.CollectQueued(nullptr);
  if (begin_ != nullptr && work_.known()) end_ = MarkOnGpu(context);
}

void SegmentClock::Take(Context& context) {
  const std::unique_ptr<Event> begin = std::move(begin_), end = std::move(end_);
  if (begin == nullptr || end == nullptr) return;
  const absl::StatusOr<double> seconds = end->SecondsSince(*begin);
  if (seconds.ok()) work_.Teach(context.cost_correction(), *seconds);
}

void SegmentClock::Forget(Context& context) {
  context.CollectQueued(nullptr);
  begin_ = nullptr;
  end_ = nullptr;
}

}  // namespace tandem
