// CUDA as dispatch/ sees it: which devices there are (ProbeDevices), and one of them as a Backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "cuda/device_probe.h"

namespace tandem::cuda {

class Runtime;

struct CudaOptions {
  // CUDA ordinal, or kEmulatedDevice.
  int device = 0;
  // Most bytes of device memory to use; 0: no limit of our own. On the emulated device: its memory.
  int64_t memory_limit = 0;
  // Order in which the emulated device runs the threads of a block: "fifo", "lifo", "reverse",
  // "random:SEED" (cuda/emulator/launch.h).
  std::string emulated_schedule = "fifo";
  // A call of the emulated device that shall fail, "lost@Launch:200" (ParseFault in
  // cuda/runtime/emulated_runtime.h); empty: none. InvalidArgument on a GPU.
  std::string emulated_fault = {};
  // Where cuBLASLt is: a file, or the folder it is in; empty: searched (cuda/blas/cublaslt.h).
  std::string cublaslt_path = {};
};

// The backend owns its runtime. InvalidArgument: no such device, a bad schedule.
// FailedPrecondition: this build or machine has no CUDA, or the device is older than compute
// capability 8.0.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options);
// The same on a given runtime.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(std::unique_ptr<Runtime> runtime,
                                                         const CudaOptions& options);

// Device memory that an allocation of so many bytes takes.
int64_t BlockBytes(int64_t bytes);

}  // namespace tandem::cuda
