// The CPU's stream: work runs at once, on the thread pool that the stream carries.
#pragma once

#include <memory>

#include "core/kernel.h"
#include "core/stream.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace tandem::cpu {

class OneDnnCache;

class CpuStream final : public Stream {
 public:
  CpuStream(std::shared_ptr<ThreadPool> pool, CpuFeatures features);

  Device device() const override { return {DeviceKind::kCpu, 0}; }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<Event>> Record() override;
  absl::Status Wait(const Event&) override { return absl::OkStatus(); }

  ThreadPool& pool() const { return *pool_; }
  const CpuFeatures& features() const { return features_; }
  // Prepared oneDNN primitives, see onednn_cache.h.
  OneDnnCache& onednn() const { return *onednn_; }

  // The stream of a CPU kernel's context.
  static CpuStream& Of(const KernelContext& context) {
    return static_cast<CpuStream&>(*context.stream);
  }

 private:
  std::shared_ptr<ThreadPool> pool_;
  CpuFeatures features_;
  std::shared_ptr<OneDnnCache> onednn_;
};

// supports() of a kernel that needs nothing but an instruction set.
absl::Status CheckIsa(const KernelContext& context, Isa needed);

template <Isa kIsa, typename Args>
absl::Status SupportsIsa(const KernelContext& context, const Args&) {
  return CheckIsa(context, kIsa);
}

}  // namespace tandem::cpu
