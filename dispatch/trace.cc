#include "dispatch/trace.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <tuple>

namespace tandem {
namespace {

std::string Reason(const TraceRecord& record, const Policy& policy) {
  DecisionInputs inputs;
  inputs.facts = record.facts;
  inputs.cuda_present = record.cuda_present;
  return Explain(record.decision, inputs, policy);
}

nlohmann::json Arguments(const TraceRecord& record, const Policy& policy) {
  const OpFacts& facts = record.facts;
  nlohmann::json args = {{"kernel", std::string(record.kernel)},
                         {"reason", Reason(record, policy)},
                         {"elements", facts.elements},
                         {"bytes", facts.bytes}};
  if (facts.flops > 0.0) args["flops"] = facts.flops;
  if (record.fault > 0) args["fault"] = record.fault;
  if (record.moved_bytes > 0) args["bytes_moved"] = record.moved_bytes;
  for (const DeviceKind kind : kDeviceKinds) {
    const Prediction& p = record.decision.predicted[kind];
    if (p.known()) args["predicted_us_" + std::string(Name(kind))] = p.total() * 1e6;
  }
  if (facts.op == OpKind::kMatMul || facts.op == OpKind::kGroupedMatMul) {
    args["m"] = facts.m;
    args["n"] = facts.n;
    args["k"] = facts.k;
  } else if (facts.op == OpKind::kAttention) {
    args["q_len"] = facts.m;
    args["q_heads"] = facts.n;
    args["head_dim"] = facts.k;
    args["kv_len"] = facts.kv_len;
  }
  const double seconds = static_cast<double>(record.duration_ns) * 1e-9;
  if (seconds > 0.0) {
    args["GB/s"] = static_cast<double>(facts.bytes) / seconds * 1e-9;
    if (facts.flops > 0.0) args["GFLOP/s"] = facts.flops / seconds * 1e-9;
  }
  return args;
}

}  // namespace

std::vector<TraceSummary> Trace::Summarize(const Policy& policy) const {
  using Key = std::tuple<OpKind, DeviceKind, std::string_view, Decision::Rule>;
  std::map<Key, TraceSummary> groups;
  for (const TraceRecord& record : records_) {
    TraceSummary& group =
        groups[{record.facts.op, record.decision.device, record.kernel, record.decision.rule}];
    if (group.calls == 0) {
      group.op = record.facts.op;
      group.device = Name(record.device);
      group.kernel = std::string(record.kernel);
      group.reason = Reason(record, policy);
    }
    ++group.calls;
    group.total_ns += record.duration_ns;
    group.bytes += record.facts.bytes;
    group.flops += record.facts.flops;
  }
  std::vector<TraceSummary> summaries;
  summaries.reserve(groups.size());
  for (auto& [key, group] : groups) summaries.push_back(std::move(group));
  std::stable_sort(summaries.begin(), summaries.end(),
                   [](const auto& a, const auto& b) { return a.total_ns > b.total_ns; });
  return summaries;
}

void Trace::WriteChromeTrace(std::ostream& out, const Policy& policy) const {
  out << "{\"displayTimeUnit\": \"ns\", \"traceEvents\": [\n";
  // The emulated device's row must not look like a GPU's.
  Device cuda = {DeviceKind::kCuda, 0};
  for (const TraceRecord& record : records_) {
    if (record.device.kind == DeviceKind::kCuda) cuda = record.device;
  }
  for (const TraceNote& note : notes_) cuda = note.device;
  for (const Device device : {Device{}, cuda}) {
    const nlohmann::json name = {{"name", "thread_name"},
                                 {"ph", "M"},
                                 {"pid", 1},
                                 {"tid", static_cast<int>(device.kind)},
                                 {"args", {{"name", Name(device)}}}};
    out << name.dump() << (device.kind == DeviceKind::kCpu ? ",\n" : "");
  }
  for (const TraceRecord& record : records_) {
    const nlohmann::json event = {{"name", std::string(Name(record.facts.op))},
                                  {"cat", "op"},
                                  {"ph", "X"},
                                  {"pid", 1},
                                  {"tid", static_cast<int>(record.decision.device)},
                                  {"ts", static_cast<double>(record.start_ns) * 1e-3},
                                  {"dur", static_cast<double>(record.duration_ns) * 1e-3},
                                  {"args", Arguments(record, policy)}};
    out << ",\n" << event.dump();
  }
  for (const TraceNote& note : notes_) {
    const nlohmann::json event = {{"name", note.text},
                                  {"cat", "fault"},
                                  {"ph", "i"},
                                  {"s", "g"},  // a line through all rows
                                  {"pid", 1},
                                  {"tid", static_cast<int>(note.device.kind)},
                                  {"ts", static_cast<double>(note.time_ns) * 1e-3},
                                  {"args", {{"number", note.number}}}};
    out << ",\n" << event.dump();
  }
  out << "\n]}\n";
}

}  // namespace tandem
