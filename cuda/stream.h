// A CUDA stream, and what kernels reach through it: the runtime, the device's properties, launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "core/kernel.h"
#include "core/stream.h"
#include "cuda/device_probe.h"
#include "cuda/kernel_function.h"
#include "cuda/runtime/handles.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

class CachingAllocator;
class DeviceBlas;

class CudaStream : public Stream {
 public:
  // The stream of a kernel's context, which must be one of a CUDA backend.
  static CudaStream& Of(const KernelContext& context) {
    return static_cast<CudaStream&>(*context.stream);
  }

  // `allocator`: of the memory that the work uses, if it must know its streams; told already.
  // `blas`: the device's library of matrix products.
  CudaStream(Runtime& runtime, const DeviceInfo& info, Device device, UniqueStream stream,
             CachingAllocator* allocator = nullptr, DeviceBlas* blas = nullptr)
      : runtime_(runtime),
        info_(info),
        device_(device),
        stream_(std::move(stream)),
        allocator_(allocator),
        blas_(blas) {}
  ~CudaStream() override;

  Device device() const override { return device_; }
  absl::Status Synchronize() override;
  absl::StatusOr<std::unique_ptr<Event>> Record() override;
  absl::Status Wait(const Event& event) override;

  Runtime& runtime() const { return runtime_; }
  const DeviceInfo& info() const { return info_; }
  StreamHandle handle() const { return stream_.get(); }
  // nullptr: there is none.
  DeviceBlas* blas() const { return blas_; }
  bool emulated() const { return device_.index == kEmulatedDevice; }

  // Launches with one parameter struct. A grid without blocks launches nothing. Internal: an empty
  // function, a struct of another size; InvalidArgument: a grid, block or shared memory beyond the
  // device's limits.
  template <typename Params>
  absl::Status Launch(const KernelFunction& function, const LaunchConfig& config,
                      const Params& params) {
    // What lies between the fields would be anything, also a number that looks like an address.
    Params own = params;
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&own);
#endif
#endif
    return LaunchBytes(function, config, &own, sizeof(Params));
  }

 private:
  absl::Status LaunchBytes(const KernelFunction& function, const LaunchConfig& config,
                           const void* params, size_t bytes);

  Runtime& runtime_;
  const DeviceInfo& info_;
  Device device_;
  UniqueStream stream_;
  CachingAllocator* allocator_;
  DeviceBlas* blas_;
};

inline bool IsEmulated(const CudaStream& stream) { return stream.emulated(); }

// Blocks of a grid-stride loop over `elements`: one thread each, but no more blocks than keep every
// multiprocessor full (8 of 256 threads are the 2048 that one holds).
inline int64_t ElementBlocks(const CudaStream& stream, int64_t elements, int64_t threads) {
  return std::min((elements + threads - 1) / threads, int64_t{8} * stream.info().multiprocessors);
}

}  // namespace tandem::cuda
