// Compiled instead of cuda_runtime.cc when the build has no CUDA toolkit.
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

absl::StatusOr<std::unique_ptr<Runtime>> MakeCudaRuntime(const std::string&) {
  return absl::FailedPreconditionError("cuda: " + ProbeDevices().message);
}

}  // namespace tandem::cuda
