#include "cpu/stream.h"

#include <chrono>
#include <string>

#include "core/status.h"
#include "cpu/onednn_cache.h"

namespace tandem::cpu {
namespace {

// CPU work is finished when it is recorded, so an event is a time stamp.
class CpuEvent final : public Event {
 public:
  absl::Status Synchronize() override { return absl::OkStatus(); }
  absl::StatusOr<double> SecondsSince(const Event& start) const override {
    const auto* other = dynamic_cast<const CpuEvent*>(&start);
    if (other == nullptr) return InvalidArgument("start: expected an event of a CPU stream");
    return std::chrono::duration<double>(time_ - other->time_).count();
  }

 private:
  std::chrono::steady_clock::time_point time_ = std::chrono::steady_clock::now();
};

}  // namespace

CpuStream::CpuStream(std::shared_ptr<ThreadPool> pool, CpuFeatures features)
    : pool_(std::move(pool)), features_(features), onednn_(std::make_shared<OneDnnCache>()) {}

absl::StatusOr<std::unique_ptr<Event>> CpuStream::Record() { return std::make_unique<CpuEvent>(); }

absl::Status CheckIsa(const KernelContext& context, Isa needed) {
  const Isa allowed = CpuStream::Of(context).features().isa;
  if (allowed >= needed) return absl::OkStatus();
  return Unimplemented("needs ", std::string(Name(needed)), ", but only ",
                       std::string(Name(allowed)), " is available or allowed");
}

}  // namespace tandem::cpu
