// Comparisons as JSON (docs/benchmarking.md), and back, with a message for everything that is not
// as documented.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/status.h"
#include "tools/comparison.h"

namespace tandem::tools {
namespace {

using nlohmann::json;

constexpr const char* kSchema = "tandem-comparison";
constexpr const char* kLimitKinds[] = {"bandwidth", "compute", "transfer"};

const char* UnitOf(MachineLimit::Kind kind) {
  return kind == MachineLimit::Kind::kCompute ? "GFLOP/s" : "GB/s";
}

json Pairs(const std::vector<std::pair<std::string, std::string>>& pairs, const char* first,
           const char* second) {
  json list = json::array();
  for (const auto& [a, b] : pairs) list.push_back({{first, a}, {second, b}});
  return list;
}

json PointJson(const ComparedPoint& point) {
  json times = json::array();
  for (const ComparedTime& time : point.times) {
    if (time.runs == 0) {
      times.push_back({{"device", time.device}, {"runs", 0}, {"why", time.why}});
      continue;
    }
    times.push_back({{"device", time.device},
                     {"kernel", time.kernel},
                     {"runs", time.runs},
                     {"median_s", time.median},
                     {"low_s", time.low},
                     {"high_s", time.high}});
  }
  return {{"x", point.x},
          {"bytes", point.bytes},
          {"flops", point.flops},
          {"times", std::move(times)},
          {"choice", point.choice},
          {"reason", point.reason},
          {"constants", point.constants}};
}

// Derived from the times, for whoever reads the file; not read back.
json SummaryJson(const Comparison& comparison) {
  json regrets = json::array(), crossovers = json::array();
  for (const RegretSummary& regret : Regrets(comparison)) {
    regrets.push_back({{"strategy", regret.strategy},
                       {"points", regret.points},
                       {"mean", regret.mean},
                       {"worst", regret.worst},
                       {"worst_series", regret.worst_series},
                       {"worst_x", regret.worst_x}});
  }
  for (const ComparedSeries& series : comparison.series) {
    for (size_t a = 0; a < comparison.devices.size(); ++a) {
      for (size_t b = a + 1; b < comparison.devices.size(); ++b) {
        for (const Crossover& crossover :
             Crossovers(series, comparison.devices[a].id, comparison.devices[b].id)) {
          crossovers.push_back({{"series", series.id},
                                {"x", crossover.x},
                                {"below", crossover.below},
                                {"above", crossover.above}});
        }
      }
    }
  }
  return {{"regrets", std::move(regrets)}, {"crossovers", std::move(crossovers)}};
}

// Reads fields and keeps the first thing that is wrong.
class Reader {
 public:
  const absl::Status& status() const { return status_; }
  void Fail(const std::string& where, const char* expected) {
    if (status_.ok()) status_ = InvalidArgument("comparison: ", where, ": expected ", expected);
  }

  const json& Field(const json& object, const std::string& where, const char* name) {
    static const json kNull;
    if (!object.is_object()) {
      Fail(where, "an object");
      return kNull;
    }
    const auto found = object.find(name);
    return found == object.end() ? kNull : *found;
  }
  std::string Text(const json& object, const std::string& where, const char* name) {
    const json& field = Field(object, where, name);
    if (field.is_string()) return field.get<std::string>();
    Fail(where + "." + name, "a string");
    return "";
  }
  std::string TextOr(const json& object, const std::string& where, const char* name) {
    return Field(object, where, name).is_null() ? "" : Text(object, where, name);
  }
  bool FlagOr(const json& object, const std::string& where, const char* name) {
    const json& field = Field(object, where, name);
    if (field.is_boolean()) return field.get<bool>();
    if (!field.is_null()) Fail(where + "." + name, "true or false");
    return false;
  }
  // From `least` to what plots can show.
  double Number(const json& object, const std::string& where, const char* name, double least) {
    const json& field = Field(object, where, name);
    if (field.is_number()) {
      const double value = field.get<double>();
      if (value >= least && value <= kMost) return value;
    }
    Fail(where + "." + name, "a number in range");
    return least;
  }
  int64_t Integer(const json& object, const std::string& where, const char* name, int64_t least) {
    const json& field = Field(object, where, name);
    if (field.is_number_integer() && field.get<int64_t>() >= least &&
        field.get<int64_t>() <= kMostInteger) {
      return field.get<int64_t>();
    }
    Fail(where + "." + name, "an integer in range");
    return least;
  }
  // Calls item(element, where) for each.
  template <typename Item>
  void List(const json& object, const std::string& where, const char* name, Item item) {
    const json& field = Field(object, where, name);
    if (!field.is_array()) return Fail(where + "." + name, "a list");
    for (size_t i = 0; i < field.size() && status_.ok(); ++i) {
      item(field[i], where + "." + name + "[" + std::to_string(i) + "]");
    }
  }

 private:
  static constexpr double kMost = 1e30;
  static constexpr int64_t kMostInteger = int64_t{1} << 48;
  absl::Status status_;
};

// Shorter than any call, and longer than any: what the axes can show.
constexpr double kLeastSeconds = 1e-12, kMostSeconds = 1e9;

ComparedTime ReadTime(Reader& reader, const json& object, const std::string& where,
                      const std::set<std::string>& devices) {
  ComparedTime time;
  time.device = reader.Text(object, where, "device");
  if (!devices.contains(time.device)) reader.Fail(where + ".device", "one of the devices");
  time.runs =
      static_cast<int>(std::min<int64_t>(reader.Integer(object, where, "runs", 0), 1 << 30));
  if (time.runs == 0) {
    time.why = reader.TextOr(object, where, "why");
    return time;
  }
  time.kernel = reader.TextOr(object, where, "kernel");
  time.median = reader.Number(object, where, "median_s", kLeastSeconds);
  time.low = reader.Number(object, where, "low_s", kLeastSeconds);
  time.high = reader.Number(object, where, "high_s", kLeastSeconds);
  if (time.low > time.median || time.median > time.high || time.high > kMostSeconds) {
    reader.Fail(where, "low_s <= median_s <= high_s <= 1e9");
  }
  return time;
}

ComparedSeries ReadSeries(Reader& reader, const json& object, const std::string& where,
                          const std::set<std::string>& devices) {
  ComparedSeries series;
  series.id = reader.Text(object, where, "id");
  series.op = reader.Text(object, where, "op");
  series.title = reader.Text(object, where, "title");
  series.shape = reader.TextOr(object, where, "shape");
  series.x_name = reader.Text(object, where, "x_name");
  series.operands = reader.TextOr(object, where, "operands");
  reader.List(object, where, "points", [&](const json& p, const std::string& at) {
    ComparedPoint point;
    point.x = reader.Integer(p, at, "x", 1);
    if (!series.points.empty() && point.x <= series.points.back().x) {
      reader.Fail(at + ".x", "more than that of the point before");
    }
    point.bytes = reader.Number(p, at, "bytes", 0.0);
    point.flops = reader.Number(p, at, "flops", 0.0);
    for (const double amount : {point.bytes, point.flops}) {
      if (amount > 0.0 && amount < 1.0) reader.Fail(at, "bytes and flops of 0, or 1 and more");
    }
    point.choice = reader.TextOr(p, at, "choice");
    point.reason = reader.TextOr(p, at, "reason");
    point.constants = reader.TextOr(p, at, "constants");
    reader.List(p, at, "times", [&](const json& t, const std::string& in) {
      point.times.push_back(ReadTime(reader, t, in, devices));
    });
    series.points.push_back(std::move(point));
  });
  return series;
}

ComparedDevice ReadDevice(Reader& reader, const json& object, const std::string& where) {
  ComparedDevice device;
  device.id = reader.Text(object, where, "id");
  device.name = reader.Text(object, where, "name");
  device.emulated = reader.FlagOr(object, where, "emulated");
  reader.List(object, where, "limits", [&](const json& l, const std::string& at) {
    MachineLimit limit;
    const std::string kind = reader.Text(l, at, "kind");
    const auto found = std::find(std::begin(kLimitKinds), std::end(kLimitKinds), kind);
    if (found == std::end(kLimitKinds)) return reader.Fail(at + ".kind", "a known kind");
    limit.kind = static_cast<MachineLimit::Kind>(found - std::begin(kLimitKinds));
    limit.what = reader.Text(l, at, "what");
    limit.value = reader.Number(l, at, "value", 1e-6);
    device.limits.push_back(limit);
  });
  return device;
}

}  // namespace

std::string ToJson(const Comparison& comparison) {
  json devices = json::array(), series = json::array();
  for (const ComparedDevice& device : comparison.devices) {
    json limits = json::array();
    for (const MachineLimit& limit : device.limits) {
      limits.push_back({{"kind", kLimitKinds[static_cast<size_t>(limit.kind)]},
                        {"what", limit.what},
                        {"value", limit.value},
                        {"unit", UnitOf(limit.kind)}});
    }
    devices.push_back({{"id", device.id},
                       {"name", device.name},
                       {"emulated", device.emulated},
                       {"limits", std::move(limits)}});
  }
  for (const ComparedSeries& s : comparison.series) {
    json points = json::array();
    for (const ComparedPoint& point : s.points) points.push_back(PointJson(point));
    series.push_back({{"id", s.id},
                      {"op", s.op},
                      {"title", s.title},
                      {"shape", s.shape},
                      {"x_name", s.x_name},
                      {"operands", s.operands},
                      {"points", std::move(points)}});
  }
  const json whole = {
      {"schema", kSchema},
      {"version", Comparison::kVersion},
      {"kind", comparison.kind == ComparisonKind::kSimulated ? "simulated" : "measured"},
      {"tandem", comparison.tandem_version},
      {"date", comparison.date},
      {"policy", comparison.policy},
      {"quick", comparison.quick},
      {"machine", Pairs(comparison.machine, "what", "value")},
      {"absent", Pairs(comparison.absent, "device", "why")},
      {"devices", std::move(devices)},
      {"series", std::move(series)},
      {"summary", SummaryJson(comparison)}};
  // Names come from drivers: bytes that are no UTF-8 are replaced.
  return whole.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

absl::StatusOr<Comparison> ComparisonFromJson(const std::string& text) {
  const json whole = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!whole.is_object()) return InvalidArgument("comparison: expected a JSON object");
  Reader reader;
  if (reader.Text(whole, "file", "schema") != kSchema) {
    return InvalidArgument("comparison: schema: expected ", kSchema);
  }
  const int64_t version = reader.Integer(whole, "file", "version", 0);
  if (version != Comparison::kVersion) {
    return InvalidArgument("comparison: version: expected ", Comparison::kVersion, ", got ",
                           version);
  }
  Comparison comparison;
  const std::string kind = reader.Text(whole, "file", "kind");
  if (kind != "measured" && kind != "simulated") reader.Fail("kind", "measured or simulated");
  if (kind == "simulated") comparison.kind = ComparisonKind::kSimulated;
  comparison.tandem_version = reader.TextOr(whole, "file", "tandem");
  comparison.date = reader.TextOr(whole, "file", "date");
  comparison.policy = reader.TextOr(whole, "file", "policy");
  comparison.quick = reader.FlagOr(whole, "file", "quick");
  reader.List(whole, "file", "machine", [&](const json& m, const std::string& at) {
    comparison.machine.emplace_back(reader.Text(m, at, "what"), reader.Text(m, at, "value"));
  });
  reader.List(whole, "file", "absent", [&](const json& a, const std::string& at) {
    comparison.absent.emplace_back(reader.Text(a, at, "device"), reader.Text(a, at, "why"));
  });
  std::set<std::string> ids, series_ids;
  reader.List(whole, "file", "devices", [&](const json& d, const std::string& at) {
    comparison.devices.push_back(ReadDevice(reader, d, at));
    if (!ids.insert(comparison.devices.back().id).second) reader.Fail(at + ".id", "a new id");
  });
  reader.List(whole, "file", "series", [&](const json& s, const std::string& at) {
    comparison.series.push_back(ReadSeries(reader, s, at, ids));
    if (!series_ids.insert(comparison.series.back().id).second) reader.Fail(at + ".id", "a new id");
  });
  TANDEM_RETURN_IF_ERROR(reader.status());
  return comparison;
}

}  // namespace tandem::tools
