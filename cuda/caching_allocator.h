// Device memory that is kept when it is released, and handed out again: allocating from the driver
// waits for the device and takes up to a millisecond.
//
//   sizes      rounded up to an eighth of a power of two, at least 512 bytes (at most 12.5 % more)
//   reuse      a block may be released while work on it is queued. With one stream the next user's
//              work comes after it; with several, each release records an event on every stream,
//              and the block is handed out again only when all of them have passed
//   limit      of bytes held, in use or kept. Before memory runs out, all that is kept and free is
//              given back and the allocation tried once more
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "core/buffer.h"
#include "cuda/runtime/handles.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

struct AllocatorStats {
  int64_t in_use_bytes = 0;  // as asked for
  int64_t peak_bytes = 0;    // the most of them there ever were
  int64_t held_bytes = 0;    // of device memory, in use or kept
  int64_t kept_blocks = 0;
  int64_t reused = 0;     // allocations served from kept blocks
  int64_t allocated = 0;  // allocations served by the runtime
  int64_t flushes = 0;    // times that all kept blocks were given back for want of memory
};

class CachingAllocator final : public Allocator {
 public:
  CachingAllocator(Runtime& runtime, Device device, int64_t limit)
      : runtime_(runtime), device_(device), limit_(limit) {}
  // All buffers must be gone.
  ~CachingAllocator() override;

  Device device() const override { return device_; }
  // What an allocation of so many bytes takes.
  static int64_t BlockSize(int64_t bytes);
  int64_t bytes_in_use() const override;
  AllocatorStats stats() const;
  // Gives all kept blocks back to the runtime, waiting for work on them.
  absl::Status Flush();

  // Streams whose work may use this memory. A second one waits for the first's work so far.
  absl::Status AddStream(StreamHandle stream);
  void RemoveStream(StreamHandle stream);

 protected:
  absl::StatusOr<void*> AllocateBytes(int64_t bytes) override;
  void Free(void* data, int64_t bytes) override;

 private:
  struct Kept {
    void* data = nullptr;
    std::vector<UniqueEvent> events;  // after which it is free
    bool unknown = false;             // they could not be recorded: wait for all streams
  };

  bool Ready(Kept& block);
  bool Idle();  // are all streams?
  absl::Status FlushLocked();

  Runtime& runtime_;
  const Device device_;
  const int64_t limit_;
  mutable std::mutex mutex_;
  std::vector<StreamHandle> streams_;
  std::multimap<int64_t, Kept> kept_;               // by bytes held
  std::unordered_map<void*, int64_t> block_bytes_;  // of blocks in use
  AllocatorStats stats_;
};

// Page-locked host memory.
class PinnedAllocator final : public Allocator {
 public:
  explicit PinnedAllocator(Runtime& runtime) : runtime_(runtime) {}
  Device device() const override { return {}; }
  int64_t bytes_in_use() const override;

 protected:
  absl::StatusOr<void*> AllocateBytes(int64_t bytes) override;
  void Free(void* data, int64_t bytes) override;

 private:
  Runtime& runtime_;
  mutable std::mutex mutex_;
  int64_t in_use_ = 0;
};

}  // namespace tandem::cuda
