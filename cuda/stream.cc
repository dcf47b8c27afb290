#include "cuda/stream.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "core/status.h"
#include "cuda/caching_allocator.h"

namespace tandem::cuda {
namespace {

class CudaEvent : public Event {
 public:
  CudaEvent(Runtime& runtime, UniqueEvent event) : runtime_(runtime), event_(std::move(event)) {}

  absl::Status Synchronize() override { return runtime_.Synchronize(event_.get()); }
  absl::StatusOr<double> SecondsSince(const Event& start) const override {
    TANDEM_ASSIGN_OR_RETURN(const EventHandle begin, HandleOf("start", start, runtime_));
    return runtime_.Seconds(begin, event_.get());
  }

  // InvalidArgument: an event of another device.
  static absl::StatusOr<EventHandle> HandleOf(const char* name, const Event& event,
                                              const Runtime& runtime) {
    const auto* own = dynamic_cast<const CudaEvent*>(&event);
    if (own == nullptr || &own->runtime_ != &runtime) {
      return InvalidArgument(name, ": expected an event of this CUDA device");
    }
    return own->event_.get();
  }

 private:
  Runtime& runtime_;
  UniqueEvent event_;
};

// Limits that every CUDA device of compute capability 3.0 or more has.
constexpr int64_t kMaxGridX = 2147483647;
constexpr int64_t kMaxGridYZ = 65535;
constexpr int64_t kMaxBlockThreads = 1024;
constexpr int64_t kMaxBlockZ = 64;

std::string ToString(const Dim3& d) { return absl::StrCat("[", d.x, ", ", d.y, ", ", d.z, "]"); }

}  // namespace

CudaStream::~CudaStream() {
  // What its work uses may be handed out again once the allocator does not know the stream.
  runtime_.Synchronize(handle()).IgnoreError();
  if (allocator_ != nullptr) allocator_->RemoveStream(handle());
}

absl::Status CudaStream::Synchronize() { return runtime_.Synchronize(handle()); }

absl::StatusOr<std::unique_ptr<Event>> CudaStream::Record() {
  TANDEM_ASSIGN_OR_RETURN(UniqueEvent event, MakeEvent(runtime_, device_.index));
  TANDEM_RETURN_IF_ERROR(runtime_.Record(event.get(), handle()));
  return std::make_unique<CudaEvent>(runtime_, std::move(event));
}

absl::Status CudaStream::Wait(const Event& event) {
  TANDEM_ASSIGN_OR_RETURN(const EventHandle awaited, CudaEvent::HandleOf("event", event, runtime_));
  return runtime_.Wait(handle(), awaited);
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
  return runtime_.Launch(handle(), function, config, params);
}

}  // namespace tandem::cuda
