#include "cuda/caching_allocator.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/status.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kSmallest = 512;  // bytes

}  // namespace

int64_t CachingAllocator::BlockSize(int64_t bytes) {
  const int64_t floor = std::bit_floor(static_cast<uint64_t>(std::max(bytes, kSmallest)));
  const int64_t step = std::max(kSmallest, floor / 8);
  return bytes > INT64_MAX - step ? bytes : (bytes + step - 1) / step * step;
}

CachingAllocator::~CachingAllocator() { Flush().IgnoreError(); }

int64_t CachingAllocator::bytes_in_use() const { return stats().in_use_bytes; }

AllocatorStats CachingAllocator::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  AllocatorStats stats = stats_;
  stats.kept_blocks = static_cast<int64_t>(kept_.size());
  return stats;
}

absl::Status CachingAllocator::Flush() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return FlushLocked();
}

// The runtime's Free waits for the device, so that work on a block is done before it goes.
absl::Status CachingAllocator::FlushLocked() {
  absl::Status first;
  for (auto& [bytes, block] : kept_) {
    const absl::Status status = runtime_.Free(device_.index, block.data);
    if (first.ok()) first = status;
    stats_.held_bytes -= bytes;
  }
  kept_.clear();
  return first;
}

absl::Status CachingAllocator::AddStream(StreamHandle stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  // Blocks released while there was one stream carry no events.
  if (streams_.size() == 1 && !kept_.empty()) {
    TANDEM_RETURN_IF_ERROR(runtime_.Synchronize(streams_[0]));
  }
  streams_.push_back(stream);
  return absl::OkStatus();
}

void CachingAllocator::RemoveStream(StreamHandle stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(streams_, [&](StreamHandle own) { return own.value == stream.value; });
}

bool CachingAllocator::Idle() {
  return std::all_of(streams_.begin(), streams_.end(), [&](StreamHandle stream) {
    const absl::StatusOr<bool> finished = runtime_.Finished(stream);
    return finished.ok() && *finished;
  });
}

bool CachingAllocator::Ready(Kept& block) {
  if (block.unknown) return Idle();
  while (!block.events.empty()) {
    const absl::StatusOr<bool> finished = runtime_.Finished(block.events.back().get());
    if (!finished.ok() || !*finished) return false;
    block.events.pop_back();
  }
  return true;
}

absl::StatusOr<void*> CachingAllocator::AllocateBytes(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t size = BlockSize(bytes);
  void* data = nullptr;
  int64_t held = size;
  // A block up to a quarter too large will do.
  for (auto it = kept_.lower_bound(size); it != kept_.end() && it->first - size <= size / 4; ++it) {
    if (!Ready(it->second)) continue;
    data = it->second.data;
    held = it->first;
    kept_.erase(it);
    ++stats_.reused;
    break;
  }
  if (data == nullptr) {
    absl::StatusOr<void*> fresh =
        absl::ResourceExhaustedError(absl::StrCat("the limit of ", limit_, " bytes is reached"));
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (attempt > 0) {
        if (kept_.empty() || !absl::IsResourceExhausted(fresh.status())) break;
        ++stats_.flushes;
        FlushLocked().IgnoreError();  // an error of earlier work is its stream's to report
      }
      if (size > limit_ - stats_.held_bytes) continue;
      fresh = runtime_.Allocate(device_.index, size);
      if (fresh.ok()) break;
    }
    if (!fresh.ok()) {
      return absl::Status(fresh.status().code(),
                          absl::StrCat("cannot allocate ", bytes, " bytes on ", Name(device_), " (",
                                       stats_.in_use_bytes, " in use): ", Message(fresh.status())));
    }
    data = *fresh;
    stats_.held_bytes += size;
    ++stats_.allocated;
  }
  block_bytes_[data] = held;
  if (runtime_.emulated()) runtime_.SetUse(data, Idle() ? bytes : held, held);
  stats_.in_use_bytes += bytes;
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.in_use_bytes);
  return data;
}

void CachingAllocator::Free(void* data, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = block_bytes_.find(data);
  Kept block;
  block.data = data;
  if (streams_.size() > 1) {
    for (const StreamHandle stream : streams_) {
      absl::StatusOr<UniqueEvent> event = MakeEvent(runtime_, device_.index);
      if (!event.ok() || !runtime_.Record(event->get(), stream).ok()) {
        block.unknown = true;
        break;
      }
      block.events.push_back(*std::move(event));
    }
  }
  stats_.in_use_bytes -= bytes;
  if (runtime_.emulated() && Idle()) runtime_.SetUse(data, 0, found->second);
  kept_.emplace(found->second, std::move(block));
  block_bytes_.erase(found);
}

int64_t PinnedAllocator::bytes_in_use() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return in_use_;
}

absl::StatusOr<void*> PinnedAllocator::AllocateBytes(int64_t bytes) {
  TANDEM_ASSIGN_OR_RETURN(void* data, runtime_.AllocatePinned(bytes));
  const std::lock_guard<std::mutex> lock(mutex_);
  in_use_ += bytes;
  return data;
}

void PinnedAllocator::Free(void* data, int64_t bytes) {
  runtime_.FreePinned(data).IgnoreError();
  const std::lock_guard<std::mutex> lock(mutex_);
  in_use_ -= bytes;
}

}  // namespace tandem::cuda
