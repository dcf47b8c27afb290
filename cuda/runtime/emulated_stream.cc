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

void EmulatedFault::Set(const absl::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!status_.ok()) return;
  status_ = status;
  happened_.store(true, std::memory_order_relaxed);
}

void EmulatedFault::Clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  status_ = absl::OkStatus();
  happened_.store(false, std::memory_order_relaxed);
}

absl::Status EmulatedFault::status() const {
  if (!happened()) return absl::OkStatus();
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

EmulatedStream::EmulatedStream(uint64_t seed, double jitter, EmulatedFault& fault)
    : jitter_(jitter), fault_(fault), random_(seed), worker_([this] { Work(); }) {}

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

void EmulatedStream::Drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && !busy_; });
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
    if (fault_.happened() && !task.unconditional) {
      changed_.notify_all();
      continue;
    }
    busy_ = true;
    lock.unlock();
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
    const double uniform = static_cast<double>(random_ >> 11) * 0x1p-53;
    now_ += task.seconds * (1.0 + jitter_ * uniform);
    const absl::Status status = task.run(*this);
    if (!status.ok()) fault_.Set(status);
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace tandem::cuda
