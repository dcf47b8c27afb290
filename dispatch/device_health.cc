#include "dispatch/device_health.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace tandem {

std::string_view Name(FaultCause cause) {
  switch (cause) {
    case FaultCause::kError:
      return "error";
    case FaultCause::kOutOfMemory:
      return "out of memory";
    case FaultCause::kDeviceLost:
      return "device lost";
  }
  return "unknown";
}

std::string_view Name(FaultRemedy remedy) {
  switch (remedy) {
    case FaultRemedy::kRetried:
      return "done at the second try, with kept memory given back";
    case FaultRemedy::kRanOnCpu:
      return "ran on the CPU instead";
    case FaultRemedy::kMovedToCpu:
      return "goes on with the CPU";
    case FaultRemedy::kOperandsLost:
      return "failed: what it reads is gone with the device";
    case FaultRemedy::kFailed:
      return "failed";
  }
  return "unknown";
}

std::optional<FaultCause> CauseOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kDataLoss:
      return std::nullopt;
    case absl::StatusCode::kResourceExhausted:
      return FaultCause::kOutOfMemory;
    case absl::StatusCode::kUnavailable:
      return FaultCause::kDeviceLost;
    default:
      return FaultCause::kError;
  }
}

std::string Describe(const FaultEvent& event) {
  return absl::StrCat(event.what, " on ", Name(event.device), ": ", std::string(Name(event.cause)),
                      " (", event.text, "): ", std::string(Name(event.remedy)));
}

void DeviceHealth::LogToStderr(std::string_view line) { std::cerr << "tandem: " << line << "\n"; }

void DeviceHealth::BackOff::Grow() {
  window = std::clamp(2 * window, kFirstBackOff, kLongestBackOff);
  left = window;
}

GpuState DeviceHealth::Look(OpKind op, int64_t bytes) const {
  if (lost_) return GpuState::kLost;
  if (by_op_[static_cast<size_t>(op)].left > 0) return GpuState::kBackOff;
  if (memory_.left > 0 && bytes >= memory_bytes_) return GpuState::kBackOff;
  return GpuState::kReady;
}

void DeviceHealth::Settle() {
  calm_ = !lost_ && memory_.window == 0 &&
          std::all_of(by_op_.begin(), by_op_.end(), [](const BackOff& b) { return b.window == 0; });
}

int64_t DeviceHealth::Add(FaultEvent event, bool resident) {
  const auto cause = static_cast<size_t>(event.cause);
  ++counters_.faults[cause];
  event.number = counters_.all_faults();
  switch (event.remedy) {
    case FaultRemedy::kRetried:
      ++counters_.retries_succeeded;
      break;
    case FaultRemedy::kRanOnCpu:
      ++counters_.fallbacks[cause];
      counters_.resident_fallbacks += resident ? 1 : 0;
      break;
    case FaultRemedy::kMovedToCpu:
      ++counters_.moved;
      break;
    case FaultRemedy::kOperandsLost:
    case FaultRemedy::kFailed:
      ++counters_.failed;
      break;
  }
  if (log_ && logged_ <= kLoggedEvents) {
    log_(logged_ < kLoggedEvents ? Describe(event)
                                 : "further faults of the device are counted, but not logged");
    ++logged_;
  }
  const int64_t number = event.number;
  events_.push_back(std::move(event));
  if (events_.size() > kKeptEvents) events_.pop_front();
  return number;
}

void DeviceHealth::Lose(std::string_view by) {
  if (lost_) return;
  lost_ = true;
  lost_by_ = std::string(by);
  ++counters_.lost_devices;
  Settle();
}

void DeviceHealth::Revive() {
  if (lost_) ++counters_.revived;
  lost_ = false;
  lost_by_.clear();
  by_op_ = {};
  memory_ = {};
  Settle();
}

void DeviceHealth::Failed(OpKind op, int64_t bytes, FaultCause cause) {
  if (cause == FaultCause::kOutOfMemory) {
    memory_bytes_ = memory_.window == 0 ? bytes : std::min(bytes, memory_bytes_);
    memory_.Grow();
  } else if (cause == FaultCause::kError) {
    by_op_[static_cast<size_t>(op)].Grow();
  }
  Settle();
}

void DeviceHealth::Succeeded(OpKind op, int64_t bytes) {
  by_op_[static_cast<size_t>(op)] = {};
  if (bytes >= memory_bytes_) memory_ = {};
  Settle();
}

void DeviceHealth::Avoided(OpKind op, int64_t bytes) {
  ++counters_.avoided;
  BackOff& own = by_op_[static_cast<size_t>(op)];
  if (own.left > 0) --own.left;
  if (memory_.left > 0 && bytes >= memory_bytes_) --memory_.left;
}

}  // namespace tandem
