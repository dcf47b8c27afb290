// Record of op calls: what ran where, why, and for how long.
//
// When disabled a call costs one branch. When enabled each call appends one fixed-size record to
// memory; nothing is formatted until WriteChromeTrace or Summarize.
#pragma once

#include <chrono>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "dispatch/scheduler.h"

namespace tandem {

struct TraceRecord {
  OpFacts facts;
  Decision decision;
  Device device;  // that ran it
  bool cuda_present = false;
  std::string_view kernel;  // string literal
  int64_t start_ns = 0;     // since the trace began
  int64_t duration_ns = 0;
  int64_t moved_bytes = 0;  // copied between devices for this call
  int64_t fault = 0;        // number of the fault of the GPU that this call met; 0: none
};

// Something that happened at a moment: a fault of the GPU.
struct TraceNote {
  int64_t time_ns = 0;
  Device device;
  int64_t number = 0;  // of the event, see DeviceHealth
  std::string text;
};

// All calls of one op that ran the same kernel for the same reason.
struct TraceSummary {
  OpKind op;
  std::string device;
  std::string kernel;
  std::string reason;
  int64_t calls = 0;
  int64_t total_ns = 0;
  int64_t bytes = 0;
  double flops = 0.0;
};

class Trace {
 public:
  void Enable(bool on) { enabled_ = on; }
  bool enabled() const { return enabled_; }
  void Clear() {
    records_.clear();
    notes_.clear();
  }
  int64_t Now() const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() -
                                                                begin_)
        .count();
  }
  void Add(const TraceRecord& record) { records_.push_back(record); }
  const std::vector<TraceRecord>& records() const { return records_; }
  void AddNote(TraceNote note) { notes_.push_back(std::move(note)); }
  const std::vector<TraceNote>& notes() const { return notes_; }

  // Sorted by total time, longest first.
  std::vector<TraceSummary> Summarize(const Policy& policy) const;
  // Chrome trace event format (chrome://tracing, Perfetto): one complete event per call, one row
  // per device, and an instant event per note.
  void WriteChromeTrace(std::ostream& out, const Policy& policy) const;

 private:
  bool enabled_ = false;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::vector<TraceRecord> records_;
  std::vector<TraceNote> notes_;
};

}  // namespace tandem
