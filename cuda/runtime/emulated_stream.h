// Streams and events of the emulated device: a host thread per stream, which does the stream's work
// in order while the host goes on, and a clock per stream that no real clock moves.
//
// Mutexes are per stream and per event, and the flag of a fault is relaxed, so that ThreadSanitizer
// sees no order between two streams that the program did not make.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/status.h"

namespace tandem::cuda {

class EmulatedStream;

// One piece of work.
struct EmulatedTask {
  std::function<absl::Status(EmulatedStream&)> run;
  double seconds = 0.0;        // that it takes on the virtual clock
  bool unconditional = false;  // runs even after a fault: what others wait for
};

// The error of a piece of work after which a device does no more.
class EmulatedFault {
 public:
  // Later ones are not kept.
  void Set(const absl::Status& status);
  void Clear();
  bool happened() const { return happened_.load(std::memory_order_relaxed); }
  absl::Status status() const;

 private:
  std::atomic<bool> happened_ = false;
  mutable std::mutex mutex_;
  absl::Status status_;
};

// Refers to its latest recording, as an event of CUDA does.
class EmulatedEvent {
 public:
  // A new recording, to be completed by the stream. Returns its number.
  int64_t Begin();
  void Complete(int64_t number, double time);
  int64_t latest() const;
  // Blocks until recording `number` is complete (0: there is none). The virtual time of the last
  // completed one.
  double Await(int64_t number) const;
  bool Completed(int64_t number) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  int64_t begun_ = 0;
  int64_t completed_ = 0;
  double time_ = 0.0;
};

class EmulatedStream {
 public:
  // Durations vary by up to `jitter` (0.1: 10 %), from `seed`. `fault`, of all streams of a device,
  // must live longer.
  EmulatedStream(uint64_t seed, double jitter, EmulatedFault& fault);
  // Does all work first.
  ~EmulatedStream();
  EmulatedStream(const EmulatedStream&) = delete;
  EmulatedStream& operator=(const EmulatedStream&) = delete;

  // Appends work, or records it while capturing.
  void Push(EmulatedTask task);
  // Waits until all work is done, or dropped after a fault.
  void Drain();
  bool idle() const;

  // Between these, work is recorded.
  void BeginCapture() { captured_.emplace(); }
  bool capturing() const { return captured_.has_value(); }
  std::vector<EmulatedTask> EndCapture();

  // Of the virtual clock; for tasks.
  double now() const { return now_; }
  void AdvanceTo(double time) { now_ = now_ > time ? now_ : time; }

 private:
  void Work();

  const double jitter_;
  EmulatedFault& fault_;
  uint64_t random_;
  double now_ = 0.0;  // of the worker
  std::optional<std::vector<EmulatedTask>> captured_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<EmulatedTask> queue_;
  bool busy_ = false;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace tandem::cuda
