// Memory owners. An Allocator hands out Buffers; a Tensor owns one; views do not own.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/device.h"

namespace tandem {

// Alignment of every allocation, bytes: one cache line, and one AVX-512 register.
inline constexpr int64_t kBufferAlignment = 64;
// From this size on the host allocator asks for huge pages (bytes; one x86-64 huge page). Memory in
// pages of 4 KiB is first written at 3.5 GB/s, in huge ones at 50 (measured: a fault takes 1.1 us).
inline constexpr int64_t kHugePageThreshold = int64_t{2} << 20;

class Allocator;

// A block of device memory, released to its allocator on destruction. Shared between the tensors
// that view it.
class Buffer {
 public:
  Buffer(Allocator* allocator, void* data, int64_t bytes)
      : allocator_(allocator), data_(data), bytes_(bytes) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const;

 private:
  Allocator* allocator_;
  void* data_;
  int64_t bytes_;
};

// Must outlive its buffers. Thread-safe.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual Device device() const = 0;
  // kBufferAlignment-aligned, uninitialised. 0 bytes is valid. ResourceExhausted when out of
  // memory, InvalidArgument for negative sizes.
  absl::StatusOr<std::shared_ptr<Buffer>> Allocate(int64_t bytes);
  // Bytes handed out and not yet released.
  virtual int64_t bytes_in_use() const = 0;

 protected:
  friend class Buffer;
  // nullptr when out of memory; an error where there is more to say. bytes > 0.
  virtual absl::StatusOr<void*> AllocateBytes(int64_t bytes) = 0;
  virtual void Free(void* data, int64_t bytes) = 0;
};

// Host memory; large blocks are backed by transparent huge pages where the system allows it.
std::unique_ptr<Allocator> MakeHostAllocator();

}  // namespace tandem
