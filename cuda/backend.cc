#include "cuda/backend.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/runtime/runtime.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

class DeviceAllocator : public Allocator {
 public:
  DeviceAllocator(Runtime& runtime, Device device, int64_t limit)
      : runtime_(runtime), device_(device), limit_(limit) {}

  Device device() const override { return device_; }
  int64_t bytes_in_use() const override { return in_use_.load(); }

 protected:
  void* AllocateBytes(int64_t bytes) override {
    if (in_use_.fetch_add(bytes) + bytes > limit_) {
      in_use_.fetch_sub(bytes);
      return nullptr;
    }
    const absl::StatusOr<void*> data = runtime_.Allocate(device_.index, bytes);
    if (data.ok()) return *data;
    in_use_.fetch_sub(bytes);
    return nullptr;
  }
  void Free(void* data, int64_t bytes) override {
    runtime_.Free(device_.index, data).IgnoreError();
    in_use_.fetch_sub(bytes);
  }

 private:
  Runtime& runtime_;
  const Device device_;
  const int64_t limit_;
  std::atomic<int64_t> in_use_{0};
};

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<Runtime> runtime, const DeviceInfo& info, int64_t limit)
      : runtime_(std::move(runtime)),
        info_(info),
        device_{DeviceKind::kCuda, info.index},
        allocator_(*runtime_, device_, limit) {}

  Device device() const override { return device_; }
  std::string description() const override { return info_.name; }
  std::string profile_key() const override {
    return absl::StrCat(Name(device_), " ", info_.name, " sm_", info_.compute_capability_major,
                        info_.compute_capability_minor);
  }
  Allocator& allocator() override { return allocator_; }
  absl::StatusOr<MemoryInfo> memory() const override { return runtime_->Memory(device_.index); }
  absl::StatusOr<std::unique_ptr<Stream>> CreateStream() override {
    TANDEM_ASSIGN_OR_RETURN(const StreamHandle handle, runtime_->CreateStream(device_.index));
    return std::make_unique<CudaStream>(*runtime_, info_, device_, handle);
  }
  absl::Status Copy(Stream& stream, void* destination, const void* source, int64_t bytes) override {
    return runtime_->Copy(static_cast<CudaStream&>(stream).handle(), destination, source, bytes);
  }

 private:
  std::unique_ptr<Runtime> runtime_;
  const DeviceInfo info_;
  const Device device_;
  DeviceAllocator allocator_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  if (options.memory_limit < 0) {
    return InvalidArgument("memory_limit: expected >= 0 bytes, got ", options.memory_limit);
  }
  if (options.device != kEmulatedDevice) {
    return absl::FailedPreconditionError(
        "cuda: kernels run on the emulated device only so far (TANDEM_CUDA_EMULATED=1)");
  }
  EmulatedRuntimeOptions emulated;
  if (options.memory_limit > 0) emulated.memory_bytes = options.memory_limit;
  TANDEM_ASSIGN_OR_RETURN(emulated.emulator,
                          emulator::EmulatorOptions::Parse(options.emulated_schedule));
  std::unique_ptr<Runtime> runtime = MakeEmulatedRuntime(emulated);
  const DeviceInfo info = runtime->Devices().devices[0];
  return std::make_unique<CudaBackend>(std::move(runtime), info, INT64_MAX);
}

}  // namespace tandem::cuda
