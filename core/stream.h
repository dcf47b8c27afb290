// Streams and events: ordered queues of work on one device.
//
// Work put on a stream runs in order. CPU streams run it before returning; GPU streams run it
// later. Whoever created the stream synchronises it: ops never do.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "core/device.h"

namespace tandem {

// A point in a stream's work.
class Event {
 public:
  virtual ~Event() = default;
  // Blocks the host until the work before the recorded point has finished.
  virtual absl::Status Synchronize() = 0;
  // Seconds from `start` (same device) to this event; both must have finished.
  virtual absl::StatusOr<double> SecondsSince(const Event& start) const = 0;
};

class Stream {
 public:
  virtual ~Stream() = default;
  virtual Device device() const = 0;
  virtual absl::Status Synchronize() = 0;
  virtual absl::StatusOr<std::unique_ptr<Event>> Record() = 0;
  // Later work on this stream starts after `event`.
  virtual absl::Status Wait(const Event& event) = 0;
};

}  // namespace tandem
