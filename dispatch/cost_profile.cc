#include "dispatch/cost_profile.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "dispatch/profile_file.h"

namespace tandem {
namespace {

constexpr char kWhat[] = "cost profile";
constexpr char kProfileKind[] = "costs";  // in names of files
constexpr std::string_view kFormat = "tandem cost profile 1";

bool Positive(double value) { return std::isfinite(value) && value > 0.0; }
bool NotNegative(double value) { return std::isfinite(value) && value >= 0.0; }

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return InvalidArgument(kWhat, ": ", parts...);
}

// Finite, > 0 and ascending, each by more than nothing.
bool IsAxis(const std::vector<double>& axis) {
  if (axis.empty() || !std::all_of(axis.begin(), axis.end(), Positive)) return false;
  return std::adjacent_find(axis.begin(), axis.end(), [](double a, double b) { return a >= b; }) ==
         axis.end();
}

absl::Status Validate(const CostTable& table, const std::string& where) {
  if (!IsAxis(table.rows)) return Bad(where, "rows: expected ascending numbers > 0");
  if (!IsAxis(table.work)) return Bad(where, "work: expected ascending numbers > 0");
  const size_t rows = table.rows.size(), columns = table.work.size();
  if (table.seconds.size() != rows * columns) {
    return Bad(where, "seconds: expected ", rows * columns, " numbers, got ", table.seconds.size());
  }
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < columns; ++j) {
      const double seconds = table.seconds[i * columns + j];
      if (!Positive(seconds)) return Bad(where, "seconds: expected numbers > 0");
      if ((i > 0 && seconds < table.seconds[(i - 1) * columns + j]) ||
          (j > 0 && seconds < table.seconds[i * columns + j - 1])) {
        return Bad(where, "seconds: more work takes less time");
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> Numbers(const ObjectReader& read, const char* name) {
  const nlohmann::json* list = read.Find(name);
  if (list == nullptr || !list->is_array() ||
      !std::all_of(list->begin(), list->end(), [](const auto& item) { return item.is_number(); })) {
    return read.Bad(name, "a list of numbers");
  }
  return list->get<std::vector<double>>();
}

absl::StatusOr<CostTable> ParseTable(const nlohmann::json& json, size_t index) {
  const ObjectReader read(kWhat, json, absl::StrCat("tables[", index, "]."));
  if (!json.is_object()) return read.Bad("", "an object");
  CostTable table;
  TANDEM_RETURN_IF_ERROR(read.Op("op", table.cost_class.op));
  TANDEM_RETURN_IF_ERROR(read.Kind("device", table.device));
  TANDEM_RETURN_IF_ERROR(read.Type("input", table.cost_class.input));
  TANDEM_RETURN_IF_ERROR(read.Type("weights", table.cost_class.weights));
  TANDEM_RETURN_IF_ERROR(read.Bool("packed", table.cost_class.packed));
  TANDEM_ASSIGN_OR_RETURN(table.rows, Numbers(read, "rows"));
  TANDEM_ASSIGN_OR_RETURN(table.work, Numbers(read, "work"));
  TANDEM_ASSIGN_OR_RETURN(table.seconds, Numbers(read, "seconds"));
  return table;
}

// The entries of the list `name`, each an object.
absl::StatusOr<const nlohmann::json*> Objects(const ObjectReader& read, const char* name) {
  const nlohmann::json* list = read.Find(name);
  if (list == nullptr || !list->is_array()) return read.Bad(name, "a list");
  for (const nlohmann::json& item : *list) {
    if (!item.is_object()) return read.Bad(name, "a list of objects");
  }
  return list;
}

}  // namespace

std::string Describe(const CostClass& c) {
  const bool products = c.op == OpKind::kMatMul || c.op == OpKind::kAttention;
  std::string text(Name(c.op));
  if (products || c.op == OpKind::kMask) absl::StrAppend(&text, " ", std::string(Name(c.input)));
  if (products) absl::StrAppend(&text, " x ", std::string(Name(c.weights)));
  if (c.packed) absl::StrAppend(&text, " packed");
  return text;
}

absl::Status Validate(const CostProfile& profile) {
  for (const DeviceKind kind : kDeviceKinds) {
    const DeviceCosts& device = profile.devices[kind];
    const std::string name(Name(kind));
    if (device.name.empty()) {
      if (kind == DeviceKind::kCpu) return Bad("devices: expected a CPU");
      continue;
    }
    if (!NotNegative(device.launch_seconds)) {
      return Bad("devices: ", name, ": launch_seconds: expected a number >= 0");
    }
    if (!NotNegative(device.bytes_per_second)) {
      return Bad("devices: ", name, ": bytes_per_second: expected a number >= 0");
    }
    for (const CopyCosts& copy : profile.copies_to[kind]) {
      if (!NotNegative(copy.latency_seconds) || !NotNegative(copy.bytes_per_second)) {
        return Bad("copies: to ", name, ": expected numbers >= 0");
      }
    }
  }
  if (!NotNegative(profile.shared_bytes_per_second)) {
    return Bad("shared_bytes_per_second: expected a number >= 0");
  }
  for (size_t i = 0; i < profile.tables.size(); ++i) {
    const CostTable& table = profile.tables[i];
    const std::string where = absl::StrCat("tables[", i, "].");
    if (profile.devices[table.device].name.empty()) {
      return Bad(where, "device: there is no ", std::string(Name(table.device)), " among devices");
    }
    TANDEM_RETURN_IF_ERROR(Validate(table, where));
    for (size_t j = 0; j < i; ++j) {
      if (profile.tables[j].device == table.device &&
          profile.tables[j].cost_class == table.cost_class) {
        return Bad(where, "op: given twice: ", Describe(table.cost_class));
      }
    }
  }
  return absl::OkStatus();
}

std::string ToJson(const CostProfile& profile) {
  nlohmann::json json = {{"format", std::string(kFormat)},
                         {"machine", profile.machine},
                         {"devices", nlohmann::json::array()},
                         {"copies", nlohmann::json::array()},
                         {"tables", nlohmann::json::array()}};
  for (const DeviceKind kind : kDeviceKinds) {
    const DeviceCosts& device = profile.devices[kind];
    if (device.name.empty()) continue;
    json["devices"].push_back({{"device", std::string(Name(kind))},
                               {"name", device.name},
                               {"launch_seconds", device.launch_seconds},
                               {"bytes_per_second", device.bytes_per_second}});
    for (const bool pinned : {false, true}) {
      const CopyCosts& copy = profile.copies_to[kind][pinned ? 1 : 0];
      if (copy.bytes_per_second <= 0.0) continue;
      json["copies"].push_back({{"from", std::string(Name(Other(kind)))},
                                {"to", std::string(Name(kind))},
                                {"pinned", pinned},
                                {"latency_seconds", copy.latency_seconds},
                                {"bytes_per_second", copy.bytes_per_second}});
    }
  }
  if (profile.shared_bytes_per_second > 0.0) {
    json["shared_bytes_per_second"] = profile.shared_bytes_per_second;
  }
  for (const CostTable& table : profile.tables) {
    json["tables"].push_back({{"op", std::string(Name(table.cost_class.op))},
                              {"device", std::string(Name(table.device))},
                              {"input", std::string(Name(table.cost_class.input))},
                              {"weights", std::string(Name(table.cost_class.weights))},
                              {"packed", table.cost_class.packed},
                              {"rows", table.rows},
                              {"work", table.work},
                              {"seconds", table.seconds}});
  }
  return DumpJson(json);
}

absl::StatusOr<CostProfile> CostProfileFromJson(std::string_view text) {
  const auto json =
      nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Bad("expected a JSON object");
  const ObjectReader read(kWhat, json, "");
  TANDEM_RETURN_IF_ERROR(read.Format(kFormat));
  CostProfile profile;
  TANDEM_RETURN_IF_ERROR(read.String("machine", profile.machine));
  TANDEM_ASSIGN_OR_RETURN(const nlohmann::json* devices, Objects(read, "devices"));
  for (const nlohmann::json& item : *devices) {
    const ObjectReader field(kWhat, item, "devices: ");
    DeviceKind kind;
    TANDEM_RETURN_IF_ERROR(field.Kind("device", kind));
    DeviceCosts& device = profile.devices[kind];
    TANDEM_RETURN_IF_ERROR(field.String("name", device.name));
    TANDEM_RETURN_IF_ERROR(field.Number("launch_seconds", device.launch_seconds));
    TANDEM_RETURN_IF_ERROR(field.Number("bytes_per_second", device.bytes_per_second));
  }
  TANDEM_ASSIGN_OR_RETURN(const nlohmann::json* copies, Objects(read, "copies"));
  for (const nlohmann::json& item : *copies) {
    const ObjectReader field(kWhat, item, "copies: ");
    DeviceKind to;
    bool pinned = false;
    TANDEM_RETURN_IF_ERROR(field.Kind("to", to));
    TANDEM_RETURN_IF_ERROR(field.Bool("pinned", pinned));
    CopyCosts& copy = profile.copies_to[to][pinned ? 1 : 0];
    TANDEM_RETURN_IF_ERROR(field.Number("latency_seconds", copy.latency_seconds));
    TANDEM_RETURN_IF_ERROR(field.Number("bytes_per_second", copy.bytes_per_second));
  }
  if (read.Find("shared_bytes_per_second") != nullptr) {
    TANDEM_RETURN_IF_ERROR(read.Number("shared_bytes_per_second", profile.shared_bytes_per_second));
  }
  TANDEM_ASSIGN_OR_RETURN(const nlohmann::json* tables, Objects(read, "tables"));
  for (size_t i = 0; i < tables->size(); ++i) {
    TANDEM_ASSIGN_OR_RETURN(CostTable table, ParseTable((*tables)[i], i));
    profile.tables.push_back(std::move(table));
  }
  TANDEM_RETURN_IF_ERROR(Validate(profile));
  return profile;
}

std::string DefaultCostProfilePath(std::string_view machine) {
  return DefaultProfilePath(kProfileKind, machine);
}

absl::StatusOr<CostProfile> ReadCostProfile(const std::string& path) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadProfileFile(kWhat, path));
  return CostProfileFromJson(text);
}

absl::StatusOr<std::optional<CostProfile>> LoadCostProfile(const std::string& path,
                                                           std::string_view machine, bool required,
                                                           std::string* note) {
  std::error_code error;
  if (!required && (path.empty() || !std::filesystem::exists(path, error))) {
    const std::string stale = path.empty() ? "" : FindStaleProfile(kProfileKind, path, machine);
    *note = stale.empty() ? "not measured on this machine (tandem calibrate)"
                          : absl::StrCat("ignored: it was measured with ", stale, ", this is ",
                                         std::string(machine), "; tandem calibrate measures anew");
    return std::nullopt;
  }
  absl::StatusOr<CostProfile> profile = ReadCostProfile(path);
  if (profile.ok() && profile->machine != machine) {
    profile = Bad("'", path, "' was measured on another machine (", profile->machine, "), this is ",
                  std::string(machine));
  }
  if (profile.ok()) {
    *note = absl::StrCat("measured, ", profile->tables.size(), " tables in ", path);
    return std::optional<CostProfile>(*std::move(profile));
  }
  if (required) return profile.status();
  *note = "ignored: " + Message(profile.status());
  if (note->find(path) == std::string::npos) absl::StrAppend(note, " (", path, ")");
  return std::nullopt;
}

absl::Status SaveCostProfile(const std::string& path, const CostProfile& profile) {
  TANDEM_RETURN_IF_ERROR(Validate(profile));
  return WriteProfileFile(kWhat, path, ToJson(profile));
}

}  // namespace tandem
