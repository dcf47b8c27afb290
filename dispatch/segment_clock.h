// What a GPU takes for several calls that are queued one behind the other while nobody waits, by
// its own clock: a part of a model that is placed there. It corrects what is predicted of such
// calls.
#pragma once

#include <memory>

#include "core/stream.h"
#include "dispatch/context.h"
#include "dispatch/cost_correction.h"

namespace tandem {

class SegmentClock {
 public:
  // From now on, in the order of the stream, until End: the context's GPU calls whose operands are
  // there. What was there before and is finished is taken first. Marks that cannot be made are no
  // error: then nothing is learned.
  void Begin(Context& context);
  // Does nothing without Begin.
  void End(Context& context);
  // Learns from the last segment if it is finished; if it is not, nobody ever does.
  void Take(Context& context);
  // Of a segment that failed nothing is learned.
  void Forget(Context& context);

 private:
  QueuedWork work_;
  std::unique_ptr<Event> begin_, end_;
};

}  // namespace tandem
