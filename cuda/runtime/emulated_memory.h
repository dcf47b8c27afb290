// The memory of the emulated device: a range of addresses of its own, so that any address can be
// told to be the device's, and in use, freed, or beyond the end of an allocation.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tandem::cuda {

class EmulatedMemory {
 public:
  // Reserves addresses; pages are backed when they are first written.
  explicit EmulatedMemory(int64_t limit);
  ~EmulatedMemory();
  EmulatedMemory(const EmulatedMemory&) = delete;
  EmulatedMemory& operator=(const EmulatedMemory&) = delete;

  // 256-byte aligned, filled with NaN, with a gap behind it that AddressSanitizer guards.
  // ResourceExhausted beyond the limit.
  absl::StatusOr<void*> Allocate(int64_t bytes);
  absl::Status Free(void* data);
  void SetUse(void* data, int64_t used, int64_t bytes);

  // Is it an address of the device, whatever it holds?
  bool Contains(const void* address) const;
  // OK if the bytes are those of one live allocation.
  absl::Status Check(const void* data, int64_t bytes) const;

  int64_t used() const;
  int64_t count() const;  // live allocations

 private:
  const int64_t limit_;
  char* base_ = nullptr;
  int64_t reserved_ = 0;
  mutable std::mutex mutex_;
  std::map<int64_t, int64_t> live_;  // offset -> bytes
  std::map<int64_t, int64_t> free_;  // offset -> bytes, neighbours merged
  int64_t used_ = 0;
  int64_t highest_ = 0;  // end of the highest allocation there ever was
};

}  // namespace tandem::cuda
