// One device: its memory, its streams, and copies to and from it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/buffer.h"
#include "core/stream.h"

namespace tandem {

struct MemoryInfo {
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

// Work that was recorded from a stream.
class RecordedWork {
 public:
  virtual ~RecordedWork() = default;
  // Puts all of it on the stream it was recorded from, on the memory it was recorded with.
  virtual absl::Status Launch() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device device() const = 0;
  // What a person calls it: "AMD EPYC 9965", "NVIDIA H200".
  virtual std::string description() const = 0;
  // All that the speed of its kernels depends on, in one line: measurements taken under another key
  // say nothing about this device.
  virtual std::string profile_key() const { return description(); }
  virtual Allocator& allocator() = 0;
  virtual absl::StatusOr<MemoryInfo> memory() const = 0;
  virtual absl::StatusOr<std::unique_ptr<Stream>> CreateStream() = 0;
  // Page-locked host memory, which copies to and from this device read and write while the host
  // goes on. nullptr: any host memory will do.
  virtual Allocator* pinned_allocator() { return nullptr; }
  // Gives memory that is kept for later allocations back to the device, waiting for work on it.
  virtual absl::Status ReleaseUnused() { return absl::OkStatus(); }
  // Copies `bytes` between this device and the host, or within either, in the stream's order.
  virtual absl::Status Copy(Stream& stream, void* destination, const void* source,
                            int64_t bytes) = 0;
  // Between the two, work put on the stream is recorded instead of done. EndCapture ends that also
  // where it fails. Unimplemented: this device records nothing.
  virtual absl::Status BeginCapture(Stream& stream);
  virtual absl::StatusOr<std::unique_ptr<RecordedWork>> EndCapture(Stream& stream);
  // Marks what the host puts on streams in between, for profilers (NVTX). `name`: a string literal.
  virtual void BeginRange(const char* /*name*/) {}
  virtual void EndRange() {}
};

}  // namespace tandem
