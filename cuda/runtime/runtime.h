// The runtime API as Tandem uses it: one thin virtual interface, two implementations.
//
//   MakeCudaRuntime()      the CUDA runtime (cudart, linked statically, loads the driver lazily)
//   MakeEmulatedRuntime()  the emulated device: kernels run on host threads through cuda/emulator/
//
// Handles are opaque pointers, owned by whoever created them; the RAII forms are in
// cuda/runtime/handles.h. Every call may fail: the Status carries the call's name and the error's
// text. Out of memory is ResourceExhausted; a sticky error (the device is lost) is Unavailable,
// from then on by every call. Errors of work that runs later are reported by a call that waits for
// it. Nothing here is on a hot path but Launch, Copy, Fill and the event calls. Thread-safe, but
// for one stream or event used by several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "cuda/device_probe.h"
#include "cuda/kernel_function.h"
#include "cuda/runtime/tensor_map.h"

namespace tandem::cuda {

class Blas;

struct StreamHandle {
  void* value = nullptr;
};
struct EventHandle {
  void* value = nullptr;
};
struct GraphHandle {
  void* value = nullptr;
};  // an instantiated, launchable graph

// Extents of a grid or a block; y and z of a grid are at most 65 535.
struct Dim3 {
  int64_t x = 1, y = 1, z = 1;
};

struct LaunchConfig {
  Dim3 grid = {};
  Dim3 block = {};
  int64_t shared_bytes = 0;  // dynamic shared memory; above 48 KiB opted in to
};

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual bool emulated() const = 0;

  // Devices.
  virtual Probe Devices() = 0;
  virtual absl::StatusOr<MemoryInfo> Memory(int device) = 0;

  // Device memory, 256-byte aligned. bytes > 0.
  virtual absl::StatusOr<void*> Allocate(int device, int64_t bytes) = 0;
  virtual absl::Status Free(int device, void* data) = 0;
  // Page-locked host memory, which copies read and write asynchronously.
  virtual absl::StatusOr<void*> AllocatePinned(int64_t bytes) = 0;
  virtual absl::Status FreePinned(void* data) = 0;

  // For bulk tensor copies of kernels (compute capability 9.0 and up). Holds spec.data's address.
  virtual absl::StatusOr<TensorMap> EncodeTensorMap(const TensorMapSpec& spec) = 0;

  // Tells memory checkers that only the first `used` bytes of an allocation of `bytes` are in use
  // (0: it lies in a pool). No work may be under way on it.
  virtual void SetUse(void* /*data*/, int64_t /*used*/, int64_t /*bytes*/) {}

  // Streams.
  virtual absl::StatusOr<StreamHandle> CreateStream(int device) = 0;
  virtual absl::Status DestroyStream(StreamHandle stream) = 0;
  virtual absl::Status Synchronize(StreamHandle stream) = 0;
  virtual absl::StatusOr<bool> Finished(StreamHandle stream) = 0;

  // Work on a stream. Copies go between device memories and host memory in any direction; from or
  // to pageable host memory they may block.
  virtual absl::Status Copy(StreamHandle stream, void* destination, const void* source,
                            int64_t bytes) = 0;
  virtual absl::Status Fill(StreamHandle stream, void* destination, uint8_t byte,
                            int64_t bytes) = 0;
  // Copies the parameters: they may go away on return.
  virtual absl::Status Launch(StreamHandle stream, const KernelFunction& function,
                              const LaunchConfig& config, const void* params) = 0;
  // Calls function(data) on a host thread when the work before it is done. It must not call the
  // runtime.
  virtual absl::Status HostFunction(StreamHandle stream, void (*function)(void*), void* data) = 0;

  // Events.
  virtual absl::StatusOr<EventHandle> CreateEvent(int device) = 0;
  virtual absl::Status DestroyEvent(EventHandle event) = 0;
  virtual absl::Status Record(EventHandle event, StreamHandle stream) = 0;
  virtual absl::Status Wait(StreamHandle stream, EventHandle event) = 0;
  virtual absl::Status Synchronize(EventHandle event) = 0;
  virtual absl::StatusOr<bool> Finished(EventHandle event) = 0;
  // Between two recorded events that have finished. Of the emulated device: its virtual clock.
  virtual absl::StatusOr<double> Seconds(EventHandle start, EventHandle end) = 0;

  // Graphs: what is put on the stream between Begin and End is recorded, not run.
  virtual absl::Status BeginCapture(StreamHandle stream) = 0;
  virtual absl::StatusOr<GraphHandle> EndCapture(StreamHandle stream) = 0;
  virtual absl::Status LaunchGraph(GraphHandle graph, StreamHandle stream) = 0;
  virtual absl::Status DestroyGraph(GraphHandle graph) = 0;

  // A library of matrix products for this device (cuda/blas/blas.h), to be destroyed before the
  // runtime. FailedPrecondition: there is none.
  virtual absl::StatusOr<std::unique_ptr<Blas>> MakeBlas(int device) = 0;

  // Named ranges of the calling thread for profilers (NVTX). `name`: a string literal.
  virtual void PushRange(const char* /*name*/) {}
  virtual void PopRange() {}
};

// The CUDA runtime. FailedPrecondition: this build has no CUDA toolkit, or the machine no usable
// device. `cublaslt_path`: where cuBLASLt is, see cuda/blas/cublaslt.h.
absl::StatusOr<std::unique_ptr<Runtime>> MakeCudaRuntime(const std::string& cublaslt_path = "");

}  // namespace tandem::cuda
