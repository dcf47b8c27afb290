// The BLAS library of one device, found when it is first asked for, and its plans. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "cuda/blas/blas.h"
#include "cuda/blas/plan_cache.h"

namespace tandem::cuda {

class DeviceBlas {
 public:
  // Most workspace that a plan may ask for, bytes: NVIDIA's recommendation for compute capability
  // 9.0, and for older devices (cuBLAS documentation, "cublasSetWorkspace").
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
  static constexpr int64_t kWorkspaceBytesBefore90 = int64_t{4} << 20;

  DeviceBlas(Runtime& runtime, const DeviceInfo& info,
             int64_t capacity = BlasPlanCache::kDefaultCapacity);

  // FailedPrecondition, with where it was looked for: there is no library (asked once).
  absl::StatusOr<Blas*> library();
  // The plan for a problem, with its max_workspace_bytes set to the device's.
  absl::StatusOr<std::shared_ptr<const BlasPlan>> Plan(BlasProblem problem);
  BlasPlanCache& plans() { return plans_; }
  // Forgets plans and library. Nobody may be using them.
  void Reset();

 private:
  Runtime& runtime_;
  const int device_;
  const int64_t max_workspace_bytes_;
  std::mutex mutex_;
  absl::Status missing_;        // why there is no library
  std::unique_ptr<Blas> blas_;  // before the plans: they go first
  BlasPlanCache plans_;
};

}  // namespace tandem::cuda
