#include "cuda/runtime/emulated_runtime.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace tandem::cuda {
namespace {

constexpr size_t kAllocationAlignment = 256;  // bytes, as of cudaMalloc

DeviceInfo EmulatedInfo(const EmulatedRuntimeOptions& options) {
  DeviceInfo info;
  info.index = kEmulatedDevice;
  info.name = "emulated on the CPU (for tests; its speed is not a GPU's)";
  info.compute_capability_major = 9;
  info.compute_capability_minor = 0;
  info.multiprocessors = 4;
  info.memory_bytes = options.memory_bytes;
  info.l2_cache_bytes = int64_t{32} << 20;
  info.shared_memory_per_block_bytes = 227 << 10;  // of an H100
  return info;
}

class EmulatedRuntime : public Runtime {
 public:
  explicit EmulatedRuntime(const EmulatedRuntimeOptions& options)
      : options_(options), info_(EmulatedInfo(options)) {}
  ~EmulatedRuntime() override {
    for (const auto& [data, bytes] : allocations_) std::free(data);
  }

  bool emulated() const override { return true; }
  Probe Devices() override {
    Probe probe;
    probe.devices = {info_};
    probe.message = absl::StrCat("cuda:emulated: ", info_.name);
    return probe;
  }
  absl::StatusOr<MemoryInfo> Memory(int) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return MemoryInfo{options_.memory_bytes, options_.memory_bytes - used_};
  }

  absl::StatusOr<void*> Allocate(int, int64_t bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    void* data = nullptr;
    // Exactly as many bytes as asked for: AddressSanitizer then sees the end of every tensor.
    if (bytes > options_.memory_bytes - used_ ||
        posix_memalign(&data, kAllocationAlignment, static_cast<size_t>(bytes)) != 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Allocate: out of memory on cuda:emulated: ", bytes, " bytes asked for, ",
                       options_.memory_bytes - used_, " free"));
    }
    allocations_[data] = bytes;
    used_ += bytes;
    return data;
  }
  absl::Status Free(int, void* data) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocations_.find(data);
    if (found == allocations_.end()) {
      return absl::InternalError("Free: not the address of an allocation on cuda:emulated");
    }
    used_ -= found->second;
    allocations_.erase(found);
    std::free(data);
    return absl::OkStatus();
  }
  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override {
    void* data = nullptr;
    if (posix_memalign(&data, kAllocationAlignment, static_cast<size_t>(bytes)) != 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("AllocatePinned: out of host memory: ", bytes, " bytes asked for"));
    }
    return data;
  }
  absl::Status FreePinned(void* data) override {
    std::free(data);
    return absl::OkStatus();
  }

  absl::StatusOr<StreamHandle> CreateStream(int) override { return StreamHandle{this}; }
  absl::Status DestroyStream(StreamHandle) override { return absl::OkStatus(); }
  absl::Status Synchronize(StreamHandle) override { return absl::OkStatus(); }
  absl::StatusOr<bool> Finished(StreamHandle) override { return true; }

  absl::Status Copy(StreamHandle, void* destination, const void* source, int64_t bytes) override {
    if (bytes > 0) std::memmove(destination, source, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status Fill(StreamHandle, void* destination, uint8_t byte, int64_t bytes) override {
    if (bytes > 0) std::memset(destination, byte, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  absl::Status Launch(StreamHandle, const KernelFunction& function, const LaunchConfig& config,
                      const void* params) override {
    return emulator::RunKernel(function, config, params, options_.emulator);
  }
  absl::Status HostFunction(StreamHandle, void (*function)(void*), void* data) override {
    function(data);
    return absl::OkStatus();
  }

  absl::StatusOr<EventHandle> CreateEvent(int) override { return EventHandle{new EmulatedEvent()}; }
  absl::Status DestroyEvent(EventHandle event) override {
    delete static_cast<EmulatedEvent*>(event.value);
    return absl::OkStatus();
  }
  absl::Status Record(EventHandle event, StreamHandle) override {
    static_cast<EmulatedEvent*>(event.value)->time = std::chrono::steady_clock::now();
    return absl::OkStatus();
  }
  absl::Status Wait(StreamHandle, EventHandle) override { return absl::OkStatus(); }
  absl::Status Synchronize(EventHandle) override { return absl::OkStatus(); }
  absl::StatusOr<double> Seconds(EventHandle start, EventHandle end) override {
    return std::chrono::duration<double>(static_cast<EmulatedEvent*>(end.value)->time -
                                         static_cast<EmulatedEvent*>(start.value)->time)
        .count();
  }

  absl::Status BeginCapture(StreamHandle) override { return NoGraphs(); }
  absl::StatusOr<GraphHandle> EndCapture(StreamHandle) override { return NoGraphs(); }
  absl::Status LaunchGraph(GraphHandle, StreamHandle) override { return NoGraphs(); }
  absl::Status DestroyGraph(GraphHandle) override { return NoGraphs(); }

 private:
  struct EmulatedEvent {
    std::chrono::steady_clock::time_point time;
  };
  static absl::Status NoGraphs() { return Unimplemented("cuda:emulated has no graphs"); }

  const EmulatedRuntimeOptions options_;
  const DeviceInfo info_;
  std::mutex mutex_;
  std::map<void*, int64_t> allocations_;  // bytes by address
  int64_t used_ = 0;
};

}  // namespace

std::unique_ptr<Runtime> MakeEmulatedRuntime(const EmulatedRuntimeOptions& options) {
  return std::make_unique<EmulatedRuntime>(options);
}

}  // namespace tandem::cuda
