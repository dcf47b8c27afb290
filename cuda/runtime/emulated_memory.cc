#include "cuda/runtime/emulated_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/status.h"
#include "cuda/emulator/memory_guard.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kAlignment = 256;  // bytes, as of cudaMalloc
constexpr int64_t kGap = 256;        // behind every allocation, belongs to nobody
// What is larger is left as zeros: filling it would take longer than the kernels of a test.
constexpr int64_t kMaxFilled = int64_t{64} << 20;
constexpr int64_t kPage = 4096;

int64_t Footprint(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment + kGap;
}

}  // namespace

// Twice the limit, so that memory runs out by the limit and not because the free part is in pieces.
EmulatedMemory::EmulatedMemory(int64_t limit)
    : limit_(limit), reserved_(2 * std::min(limit, int64_t{1} << 40) + (int64_t{1} << 20)) {
  void* base = mmap(nullptr, static_cast<size_t>(reserved_), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    reserved_ = 0;  // every allocation is then out of memory
    return;
  }
  base_ = static_cast<char*>(base);
  free_[0] = reserved_;
}

EmulatedMemory::~EmulatedMemory() {
  if (base_ == nullptr) return;
  emulator::UnpoisonMemory(base_, static_cast<size_t>(highest_));
  munmap(base_, static_cast<size_t>(reserved_));
}

absl::StatusOr<void*> EmulatedMemory::Allocate(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto fits = [&](const auto& range) { return range.second >= Footprint(bytes); };
  auto found = free_.end();
  if (bytes > 0 && bytes <= limit_ - used_) found = std::find_if(free_.begin(), free_.end(), fits);
  if (found == free_.end()) {
    return absl::ResourceExhaustedError(absl::StrCat("out of memory on cuda:emulated: ", bytes,
                                                     " bytes asked for, ", limit_ - used_, " of ",
                                                     limit_, " free"));
  }
  const auto [offset, length] = *found;
  const int64_t taken = Footprint(bytes);
  free_.erase(found);
  if (length > taken) free_[offset + taken] = length - taken;
  live_[offset] = bytes;
  used_ += bytes;
  highest_ = std::max(highest_, offset + taken);
  char* data = base_ + offset;
  emulator::UnpoisonMemory(data, static_cast<size_t>(bytes));
  emulator::PoisonMemory(data + bytes, static_cast<size_t>(taken - bytes));
  if (bytes <= kMaxFilled) std::memset(data, 0xFF, static_cast<size_t>(bytes));
  return data;
}

absl::Status EmulatedMemory::Free(void* data) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = live_.find(static_cast<char*>(data) - base_);
  if (found == live_.end()) {
    return InvalidArgument("not the address of an allocation on cuda:emulated");
  }
  auto [offset, bytes] = *found;
  live_.erase(found);
  used_ -= bytes;
  int64_t length = Footprint(bytes);
  emulator::PoisonMemory(data, static_cast<size_t>(length));
  // Gives whole pages back to the system.
  const auto first = (reinterpret_cast<intptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto last = (reinterpret_cast<intptr_t>(data) + bytes) / kPage * kPage;
  if (last > first) {
    (void)madvise(reinterpret_cast<void*>(first), static_cast<size_t>(last - first), MADV_DONTNEED);
  }
  auto after = free_.lower_bound(offset);
  if (after != free_.end() && after->first == offset + length) {
    length += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == offset) {
      before->second += length;
      return absl::OkStatus();
    }
  }
  free_[offset] = length;
  return absl::OkStatus();
}

void EmulatedMemory::SetUse(void* data, int64_t used, int64_t bytes) {
  emulator::UnpoisonMemory(data, static_cast<size_t>(used));
  emulator::PoisonMemory(static_cast<char*>(data) + used, static_cast<size_t>(bytes - used));
}

bool EmulatedMemory::Contains(const void* address) const {
  const auto at = reinterpret_cast<intptr_t>(address), base = reinterpret_cast<intptr_t>(base_);
  return base_ != nullptr && at >= base && at < base + reserved_;
}

absl::Status EmulatedMemory::Check(const void* data, int64_t bytes) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t offset = static_cast<const char*>(data) - base_;
  auto after = live_.upper_bound(offset);
  if (after == live_.begin() || offset >= std::prev(after)->first + std::prev(after)->second) {
    return InvalidArgument("an address of cuda:emulated that is not allocated, or freed");
  }
  const auto [begin, length] = *std::prev(after);
  if (offset + bytes > begin + length) {
    return InvalidArgument(bytes, " bytes from byte ", offset - begin, " of an allocation of ",
                           length, " on cuda:emulated");
  }
  return absl::OkStatus();
}

int64_t EmulatedMemory::used() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return used_;
}

int64_t EmulatedMemory::count() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(live_.size());
}

}  // namespace tandem::cuda
