// What went wrong on the GPU of a context, and whether to ask it again. Bookkeeping only: what a
// failed call does is dispatch/fallback.h.
//
//   lost        after a lost device (Unavailable) nothing is sent there any more, until
//               Context::Revive
//   back-off    after a call that failed, out of memory also at the second try, the next calls like
//               it stay on the CPU: kFirstBackOff of them, and twice as many after each further
//               failure, at most kLongestBackOff. Then one is tried again; if it succeeds all is as
//               before. "Like it" means: out of memory, calls of any op that read and write at
//               least as many bytes; else, calls of the same op. Counted in calls, not in seconds:
//               the same program takes the same decisions every time. Calls whose operands are in
//               GPU memory are not kept away: fetching them costs more than asking.
//   events      the last kKeptEvents, with the error's text; counters of all; a log line each
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "core/device.h"
#include "core/op.h"
#include "dispatch/scheduler.h"

namespace tandem {

enum class FaultCause : uint8_t { kError, kOutOfMemory, kDeviceLost };
inline constexpr int kNumFaultCauses = 3;
std::string_view Name(FaultCause cause);  // "error", "out of memory", "device lost"

// By the code of an error that a device returned. nullopt: none of the device's, but the caller's
// (InvalidArgument, OutOfRange, DataLoss).
std::optional<FaultCause> CauseOf(const absl::Status& status);

enum class FaultRemedy : uint8_t {
  kRetried,       // the GPU did it the second time, after kept memory was given back
  kRanOnCpu,      // the call ran on the CPU
  kMovedToCpu,    // all that lay on the GPU was brought to the CPU, or made again there
  kOperandsLost,  // none: what the call reads is gone with the device. Unavailable
  kFailed,        // none: the device or kernel is forced, or the CPU failed too. The caller got it
};
std::string_view Name(FaultRemedy remedy);  // "ran on the CPU instead", ...

struct FaultEvent {
  std::string what;  // name of an op, "copy", "generation", "weights", ...
  Device device;
  FaultCause cause = FaultCause::kError;
  FaultRemedy remedy = FaultRemedy::kFailed;
  std::string text;    // of the error; it begins with the call of the runtime that failed
  int64_t number = 0;  // 1, 2, ... in this context
};
// One line: "matmul on cuda:0: out of memory (cudaMalloc: ...): ran on the CPU instead".
std::string Describe(const FaultEvent& event);

struct FaultCounters {
  std::array<int64_t, kNumFaultCauses> faults = {};     // by cause: all events
  std::array<int64_t, kNumFaultCauses> fallbacks = {};  // of those, calls that ran on the CPU
  int64_t resident_fallbacks = 0;  // of those, calls whose operands were in GPU memory
  int64_t retries = 0;             // after out of memory
  int64_t retries_succeeded = 0;
  int64_t avoided = 0;  // calls kept on the CPU: the GPU was lost, or left alone for a while
  int64_t moved = 0;    // FaultRemedy::kMovedToCpu
  int64_t failed = 0;   // the caller got the error
  int64_t lost_devices = 0;
  int64_t revived = 0;

  int64_t all_faults() const { return faults[0] + faults[1] + faults[2]; }
  int64_t all_fallbacks() const { return fallbacks[0] + fallbacks[1] + fallbacks[2]; }
  friend bool operator==(const FaultCounters&, const FaultCounters&) = default;
};

class DeviceHealth {
 public:
  static constexpr int64_t kFirstBackOff = 8;       // calls
  static constexpr int64_t kLongestBackOff = 1024;  // calls
  static constexpr size_t kKeptEvents = 256;
  static constexpr int64_t kLoggedEvents = 20;  // a device that fails at every call fills no disk

  // Nothing has failed, or all has been made good: the one question on the path of every call.
  bool calm() const { return calm_; }
  GpuState StateFor(OpKind op, int64_t bytes) const {
    return calm_ ? GpuState::kReady : Look(op, bytes);
  }
  bool lost() const { return lost_; }
  const std::string& lost_by() const { return lost_by_; }  // text of the error
  const FaultCounters& counters() const { return counters_; }
  const std::deque<FaultEvent>& events() const { return events_; }
  // Where events are logged; by default to stderr, the first kLoggedEvents. Empty: nowhere.
  void SetLog(std::function<void(std::string_view line)> log) { log_ = std::move(log); }

  // Between the two an op that fails is the caller's (a graph is being recorded).
  void SetRecording(bool recording) { recording_ = recording; }
  bool recording() const { return recording_; }

  // For dispatch/fallback.cc and Context. Numbers, counts, keeps and logs the event; the number.
  int64_t Add(FaultEvent event, bool resident = false);
  void Lose(std::string_view by);
  void Revive();
  // A call failed on the GPU for good; succeeded there; was kept from there.
  void Failed(OpKind op, int64_t bytes, FaultCause cause);
  void Succeeded(OpKind op, int64_t bytes);
  void Avoided(OpKind op, int64_t bytes);
  void CountRetry() { ++counters_.retries; }

 private:
  struct BackOff {
    int64_t window = 0;  // 0: none
    int64_t left = 0;    // calls
    void Grow();
  };
  GpuState Look(OpKind op, int64_t bytes) const;
  void Settle();  // sets calm_

  bool calm_ = true;
  bool lost_ = false;
  bool recording_ = false;
  std::string lost_by_;
  std::array<BackOff, kNumOps> by_op_ = {};
  BackOff memory_;
  int64_t memory_bytes_ = 0;  // of calls that memory_ is about: this many, or more
  FaultCounters counters_;
  std::deque<FaultEvent> events_;
  int64_t logged_ = 0;
  std::function<void(std::string_view)> log_ = LogToStderr;

  static void LogToStderr(std::string_view line);
};

}  // namespace tandem
