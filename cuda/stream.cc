#include "cuda/stream.h"

#include <cstdint>
#include <memory>
#include <string>

#include "core/status.h"

namespace tandem::cuda {
namespace {

class CudaEvent : public Event {
 public:
  CudaEvent(Runtime& runtime, EventHandle handle) : runtime_(runtime), handle_(handle) {}
  ~CudaEvent() override { runtime_.DestroyEvent(handle_).IgnoreError(); }

  absl::Status Synchronize() override { return runtime_.Synchronize(handle_); }
  absl::StatusOr<double> SecondsSince(const Event& start) const override {
    return runtime_.Seconds(static_cast<const CudaEvent&>(start).handle_, handle_);
  }
  EventHandle handle() const { return handle_; }

 private:
  Runtime& runtime_;
  EventHandle handle_;
};

// Limits that every CUDA device of compute capability 3.0 or more has.
constexpr int64_t kMaxGridX = 2147483647;
constexpr int64_t kMaxGridYZ = 65535;
constexpr int64_t kMaxBlockThreads = 1024;
constexpr int64_t kMaxBlockZ = 64;

std::string ToString(const Dim3& d) { return absl::StrCat("[", d.x, ", ", d.y, ", ", d.z, "]"); }

}  // namespace

CudaStream::~CudaStream() { runtime_.DestroyStream(handle_).IgnoreError(); }

absl::Status CudaStream::Synchronize() { return runtime_.Synchronize(handle_); }

absl::StatusOr<std::unique_ptr<Event>> CudaStream::Record() {
  TANDEM_ASSIGN_OR_RETURN(const EventHandle handle, runtime_.CreateEvent(device_.index));
  auto event = std::make_unique<CudaEvent>(runtime_, handle);
  TANDEM_RETURN_IF_ERROR(runtime_.Record(handle, handle_));
  return event;
}

absl::Status CudaStream::Wait(const Event& event) {
  return runtime_.Wait(handle_, static_cast<const CudaEvent&>(event).handle());
}

absl::Status CudaStream::LaunchBytes(const KernelFunction& function, const LaunchConfig& config,
                                     const void* params, size_t bytes) {
  if (!function) return absl::InternalError("launch: the kernel was not built for this device");
  if (bytes != function.params_bytes) {
    return absl::InternalError(absl::StrCat("launch ", function.name, ": expected parameters of ",
                                            function.params_bytes, " bytes, got ", bytes));
  }
  const Dim3 &grid = config.grid, &block = config.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return absl::OkStatus();
  if (grid.x < 0 || grid.x > kMaxGridX || grid.y < 0 || grid.y > kMaxGridYZ || grid.z < 0 ||
      grid.z > kMaxGridYZ) {
    return InvalidArgument("launch ", function.name, ": expected a grid of at most [", kMaxGridX,
                           ", ", kMaxGridYZ, ", ", kMaxGridYZ, "] blocks, got ", ToString(grid));
  }
  if (block.x < 1 || block.x > kMaxBlockThreads || block.y < 1 || block.y > kMaxBlockThreads ||
      block.z < 1 || block.z > kMaxBlockZ || block.x * block.y * block.z > kMaxBlockThreads) {
    return InvalidArgument("launch ", function.name, ": expected a block of 1..", kMaxBlockThreads,
                           " threads, got ", ToString(block));
  }
  if (config.shared_bytes < 0 || config.shared_bytes > info_.shared_memory_per_block_bytes) {
    return InvalidArgument("launch ", function.name, ": expected at most ",
                           info_.shared_memory_per_block_bytes, " bytes of shared memory, got ",
                           config.shared_bytes);
  }
  return runtime_.Launch(handle_, function, config, params);
}

}  // namespace tandem::cuda
