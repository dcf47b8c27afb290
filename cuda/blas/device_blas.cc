#include "cuda/blas/device_blas.h"

#include <utility>

#include "core/status.h"

namespace tandem::cuda {

DeviceBlas::DeviceBlas(Runtime& runtime, const DeviceInfo& info, int64_t capacity)
    : runtime_(runtime),
      device_(info.index),
      max_workspace_bytes_(info.compute_capability_major >= 9 ? kWorkspaceBytes
                                                              : kWorkspaceBytesBefore90),
      plans_(capacity) {}

absl::StatusOr<Blas*> DeviceBlas::library() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (blas_ != nullptr) return blas_.get();
  TANDEM_RETURN_IF_ERROR(missing_);
  absl::StatusOr<std::unique_ptr<Blas>> blas = runtime_.MakeBlas(device_);
  if (absl::IsFailedPrecondition(blas.status())) missing_ = blas.status();
  TANDEM_RETURN_IF_ERROR(blas.status());
  blas_ = *std::move(blas);
  return blas_.get();
}

absl::StatusOr<std::shared_ptr<const BlasPlan>> DeviceBlas::Plan(BlasProblem problem) {
  TANDEM_ASSIGN_OR_RETURN(Blas * blas, library());
  problem.max_workspace_bytes = max_workspace_bytes_;
  return plans_.Get(*blas, problem);
}

void DeviceBlas::Reset() {
  plans_.Clear();
  const std::lock_guard<std::mutex> lock(mutex_);
  blas_.reset();
  missing_ = absl::OkStatus();
}

}  // namespace tandem::cuda
