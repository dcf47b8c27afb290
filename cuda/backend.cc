#include "cuda/backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/blas/device_blas.h"
#include "cuda/caching_allocator.h"
#include "cuda/driver_release.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/runtime/runtime.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability that the kernels are compiled for

class CudaGraph final : public RecordedWork {
 public:
  CudaGraph(Runtime& runtime, UniqueGraph graph, StreamHandle stream)
      : runtime_(runtime), graph_(std::move(graph)), stream_(stream) {}
  absl::Status Launch() override { return runtime_.LaunchGraph(graph_.get(), stream_); }

 private:
  Runtime& runtime_;
  UniqueGraph graph_;
  StreamHandle stream_;
};

class CudaBackend final : public Backend {
 public:
  // `driver`: what of the driver measured times depend on.
  CudaBackend(std::unique_ptr<Runtime> runtime, const DeviceInfo& info, std::string driver,
              int64_t limit)
      : runtime_(std::move(runtime)),
        info_(info),
        driver_(std::move(driver)),
        device_{DeviceKind::kCuda, info.index},
        allocator_(*runtime_, device_, limit),
        pinned_(*runtime_),
        blas_(*runtime_, info_) {}

  Device device() const override { return device_; }
  std::string description() const override { return info_.name; }
  std::string profile_key() const override {
    return absl::StrCat(Name(device_), " ", info_.name, " sm_", info_.compute_capability_major,
                        info_.compute_capability_minor, driver_);
  }
  Allocator& allocator() override { return allocator_; }
  Allocator* pinned_allocator() override { return &pinned_; }
  absl::Status ReleaseUnused() override { return allocator_.Flush(); }
  absl::StatusOr<MemoryInfo> memory() const override { return runtime_->Memory(device_.index); }
  absl::StatusOr<std::unique_ptr<Stream>> CreateStream() override {
    TANDEM_ASSIGN_OR_RETURN(UniqueStream stream, MakeStream(*runtime_, device_.index));
    TANDEM_RETURN_IF_ERROR(allocator_.AddStream(stream.get()));
    return std::make_unique<CudaStream>(*runtime_, info_, device_, std::move(stream), &allocator_,
                                        &blas_);
  }
  absl::Status Copy(Stream& stream, void* destination, const void* source, int64_t bytes) override {
    TANDEM_RETURN_IF_ERROR(CheckStream(stream));
    if (bytes < 0) return InvalidArgument("bytes: expected >= 0, got ", bytes);
    if (bytes == 0) return absl::OkStatus();
    return runtime_->Copy(static_cast<CudaStream&>(stream).handle(), destination, source, bytes);
  }
  absl::Status BeginCapture(Stream& stream) override {
    TANDEM_RETURN_IF_ERROR(CheckStream(stream));
    return runtime_->BeginCapture(static_cast<CudaStream&>(stream).handle());
  }
  absl::StatusOr<std::unique_ptr<RecordedWork>> EndCapture(Stream& stream) override {
    TANDEM_RETURN_IF_ERROR(CheckStream(stream));
    const StreamHandle handle = static_cast<CudaStream&>(stream).handle();
    TANDEM_ASSIGN_OR_RETURN(UniqueGraph graph, MakeGraph(*runtime_, handle));
    return std::make_unique<CudaGraph>(*runtime_, std::move(graph), handle);
  }
  void BeginRange(const char* name) override { runtime_->PushRange(name); }
  void EndRange() override { runtime_->PopRange(); }

 private:
  absl::Status CheckStream(const Stream& stream) const {
    if (stream.device() == device_) return absl::OkStatus();
    return InvalidArgument("stream: is one of ", Name(stream.device()), ", expected ",
                           Name(device_));
  }

  std::unique_ptr<Runtime> runtime_;
  const DeviceInfo info_;
  const std::string driver_;
  const Device device_;
  CachingAllocator allocator_;
  PinnedAllocator pinned_;
  DeviceBlas blas_;
};

}  // namespace

int64_t BlockBytes(int64_t bytes) { return CachingAllocator::BlockSize(bytes); }

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  if (options.device != kEmulatedDevice) {
    if (!options.emulated_fault.empty()) {
      return InvalidArgument("emulated_fault: only the emulated device fails on request, not ",
                             Name({DeviceKind::kCuda, options.device}));
    }
    TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Runtime> runtime,
                            MakeCudaRuntime(options.cublaslt_path));
    return MakeCudaBackend(std::move(runtime), options);
  }
  EmulatedRuntimeOptions emulated;
  if (options.memory_limit > 0) emulated.memory_bytes = options.memory_limit;
  TANDEM_ASSIGN_OR_RETURN(emulated.emulator,
                          emulator::EmulatorOptions::Parse(options.emulated_schedule));
  std::unique_ptr<EmulatedRuntime> runtime = MakeEmulatedRuntime(emulated);
  if (!options.emulated_fault.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const Fault fault, ParseFault(options.emulated_fault));
    runtime->Inject(fault);
  }
  return MakeCudaBackend(std::move(runtime), options);
}

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(std::unique_ptr<Runtime> runtime,
                                                         const CudaOptions& options) {
  if (options.memory_limit < 0) {
    return InvalidArgument("memory_limit: expected >= 0 bytes, got ", options.memory_limit);
  }
  const Probe probe = runtime->Devices();
  const auto info = std::find_if(probe.devices.begin(), probe.devices.end(),
                                 [&](const DeviceInfo& d) { return d.index == options.device; });
  if (info == probe.devices.end()) {
    return InvalidArgument("device: there is no ", Name({DeviceKind::kCuda, options.device}), " (",
                           probe.message, ")");
  }
  if (info->compute_capability_major < kOldestMajor) {
    return absl::FailedPreconditionError(
        absl::StrCat("device: ", Name({DeviceKind::kCuda, options.device}), " (", info->name,
                     ") has compute capability ", info->compute_capability_major, ".",
                     info->compute_capability_minor, ", expected at least ", kOldestMajor, ".0"));
  }
  const int64_t limit = options.memory_limit > 0 ? options.memory_limit : INT64_MAX;
  std::string driver;
  if (options.device != kEmulatedDevice) {  // whose times are no GPU's
    driver = absl::StrCat(", driver ", DriverRelease(), " (CUDA ", probe.driver_version, ")");
  }
  return std::make_unique<CudaBackend>(std::move(runtime), *info, std::move(driver), limit);
}

}  // namespace tandem::cuda
