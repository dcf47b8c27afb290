#include "cuda/runtime/emulated_stream.h"

#include <algorithm>
#include <utility>

namespace tandem::cuda {

int64_t EmulatedEvent::Begin() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return ++begun_;
}

void EmulatedEvent::Complete(int64_t number, double time) {
  const std::lock_guard<std::mutex> lock(mutex_);
  completed_ = std::max(completed_, number);
  time_ = time;
  changed_.notify_all();
}

int64_t EmulatedEvent::latest() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return begun_;
}

double EmulatedEvent::Await(int64_t number) const {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return completed_ >= number; });
  return time_;
}

bool EmulatedEvent::Completed(int64_t number) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return completed_ >= number;
}

EmulatedStream::EmulatedStream(uint64_t seed, double jitter)
    : jitter_(jitter), random_(seed), worker_([this] { Work(); }) {}

EmulatedStream::~EmulatedStream() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  worker_.join();
}

void EmulatedStream::Push(EmulatedTask task) {
  if (captured_) {
    captured_->push_back(std::move(task));
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(std::move(task));
  changed_.notify_all();
}

absl::Status EmulatedStream::Drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && !busy_; });
  return std::exchange(error_, absl::OkStatus());
}

bool EmulatedStream::idle() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queue_.empty() && !busy_;
}

std::vector<EmulatedTask> EmulatedStream::EndCapture() {
  std::vector<EmulatedTask> tasks;
  if (captured_) tasks = *std::move(captured_);
  captured_.reset();
  return tasks;
}

void EmulatedStream::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const EmulatedTask task = std::move(queue_.front());
    queue_.pop_front();
    if (!error_.ok() && !task.unconditional) {
      changed_.notify_all();
      continue;
    }
    busy_ = true;
    lock.unlock();
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
    const double uniform = static_cast<double>(random_ >> 11) * 0x1p-53;
    now_ += task.seconds * (1.0 + jitter_ * uniform);
    absl::Status status = task.run(*this);
    lock.lock();
    busy_ = false;
    if (!status.ok() && error_.ok()) error_ = std::move(status);
    changed_.notify_all();
  }
}

}  // namespace tandem::cuda
