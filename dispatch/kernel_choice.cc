#include "dispatch/kernel_choice.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/profile_file.h"
#include "dispatch/registry.h"

namespace tandem {
namespace {

constexpr char kWhat[] = "kernel profile";
constexpr std::string_view kFormat = "tandem kernel profile 1";

uint8_t RowsClass(int64_t rows) {
  const int bits = rows <= 1 ? 0 : std::bit_width(static_cast<uint64_t>(rows - 1));
  return static_cast<uint8_t>(std::min(bits, KernelClass::kRows - 1));
}

absl::StatusOr<KernelMeasurement> ParseMeasurement(const nlohmann::json& json, size_t index) {
  const std::string where = absl::StrCat("classes[", index, "].");
  const ObjectReader read(kWhat, json, where);
  if (!json.is_object()) return read.Bad("", "an object");
  KernelMeasurement measurement;
  KernelClass& c = measurement.kernel_class;
  TANDEM_RETURN_IF_ERROR(read.Op("op", c.op));
  TANDEM_RETURN_IF_ERROR(read.Kind("device", c.device));
  TANDEM_RETURN_IF_ERROR(read.Type("input", c.input));
  TANDEM_RETURN_IF_ERROR(read.Type("weights", c.weights));
  TANDEM_RETURN_IF_ERROR(read.Bool("packed", c.packed));
  TANDEM_RETURN_IF_ERROR(read.Int("rows", KernelClass::kRows, c.rows));
  TANDEM_RETURN_IF_ERROR(read.Int("size", KernelClass::Sizes(c.op), c.size));
  const auto kernels = json.find("kernels");
  if (kernels == json.end() || !kernels->is_array() || kernels->empty()) {
    return read.Bad("kernels", "a list of kernels");
  }
  for (const nlohmann::json& item : *kernels) {
    const ObjectReader read_kernel(kWhat, item, where + "kernels.");
    if (!item.is_object()) return read_kernel.Bad("", "an object");
    KernelTime time;
    TANDEM_RETURN_IF_ERROR(read_kernel.String("name", time.kernel));
    TANDEM_RETURN_IF_ERROR(read_kernel.Seconds("seconds", time.seconds));
    measurement.times.push_back(std::move(time));
  }
  return measurement;
}

absl::StatusOr<KernelPreferences> Load(const std::string& path, std::string_view machine) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadProfileFile(kWhat, path));
  TANDEM_ASSIGN_OR_RETURN(const KernelProfile profile, KernelProfileFromJson(text));
  if (profile.machine != machine) {
    return InvalidArgument("kernel profile: '", path, "' was measured on another machine (",
                           profile.machine, "), this is ", std::string(machine));
  }
  return KernelPreferences::FromProfile(profile);
}

}  // namespace

std::optional<KernelClass> ClassOf(const OpFacts& facts, DeviceKind device) {
  KernelClass c;
  c.op = facts.op;
  c.device = device;
  c.input = facts.input;
  c.weights = facts.weights;
  c.packed = facts.packed;
  c.rows = RowsClass(facts.m);
  if (facts.op == OpKind::kMatMul) {
    c.size = facts.n < (int64_t{1} << 20) && facts.k < (int64_t{1} << 20) &&
                     facts.n * facts.k < (int64_t{1} << 20)
                 ? 0
                 : 1;
    return c;
  }
  if (facts.op == OpKind::kAttention) {
    c.size = facts.kv_len < 512 ? 0 : facts.kv_len < 4096 ? 1 : 2;
    return c;
  }
  return std::nullopt;
}

std::string Describe(const KernelClass& c) {
  const int64_t high = int64_t{1} << c.rows;
  std::string rows = c.rows == 0 ? "1" : c.rows == 1 ? "2" : absl::StrCat(high / 2 + 1, "..", high);
  if (c.rows == KernelClass::kRows - 1) rows = absl::StrCat(high / 2 + 1, " and more");
  constexpr std::string_view kMatMulSizes[] = {"N * K < 2^20", "N * K >= 2^20"};
  constexpr std::string_view kAttentionSizes[] = {"keys < 512", "keys 512..4095", "keys >= 4096"};
  const std::string_view size =
      c.op == OpKind::kAttention ? kAttentionSizes[c.size] : kMatMulSizes[c.size];
  return absl::StrCat(std::string(Name(c.op)), " ", std::string(Name(c.input)), " x ",
                      std::string(Name(c.weights)), c.packed ? " packed" : "", ", rows ", rows,
                      ", ", std::string(size));
}

std::string ToJson(const KernelProfile& profile) {
  nlohmann::json json = {{"format", std::string(kFormat)},
                         {"machine", profile.machine},
                         {"classes", nlohmann::json::array()}};
  for (const KernelMeasurement& measurement : profile.measurements) {
    const KernelClass& c = measurement.kernel_class;
    nlohmann::json item = {{"op", std::string(Name(c.op))},
                           {"device", std::string(Name(c.device))},
                           {"input", std::string(Name(c.input))},
                           {"weights", std::string(Name(c.weights))},
                           {"packed", c.packed},
                           {"rows", c.rows},
                           {"size", c.size},
                           {"kernels", nlohmann::json::array()}};
    for (const KernelTime& time : measurement.times) {
      item["kernels"].push_back({{"name", time.kernel}, {"seconds", time.seconds}});
    }
    json["classes"].push_back(std::move(item));
  }
  return DumpJson(json);
}

absl::StatusOr<KernelProfile> KernelProfileFromJson(std::string_view text) {
  const auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr,
                                          /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("kernel profile: expected a JSON object");
  const ObjectReader read(kWhat, json, "");
  KernelProfile profile;
  TANDEM_RETURN_IF_ERROR(read.Format(kFormat));
  TANDEM_RETURN_IF_ERROR(read.String("machine", profile.machine));
  const auto classes = json.find("classes");
  if (classes == json.end() || !classes->is_array()) return read.Bad("classes", "a list");
  for (size_t i = 0; i < classes->size(); ++i) {
    TANDEM_ASSIGN_OR_RETURN(KernelMeasurement measurement, ParseMeasurement((*classes)[i], i));
    profile.measurements.push_back(std::move(measurement));
  }
  return profile;
}

std::vector<uint8_t> OrderByTime(const std::vector<std::string_view>& list,
                                 const std::vector<KernelTime>& times) {
  std::vector<std::pair<uint8_t, double>> left;  // by position in the list
  for (size_t i = 0; i < std::min<size_t>(list.size(), 255); ++i) {
    for (const KernelTime& time : times) {
      if (time.kernel != list[i]) continue;
      left.emplace_back(static_cast<uint8_t>(i), time.seconds);
      break;
    }
  }
  std::vector<uint8_t> order;
  while (!left.empty()) {
    const double best =
        std::min_element(left.begin(), left.end(), [](const auto& a, const auto& b) {
          return a.second < b.second;
        })->second;
    const auto next = std::find_if(left.begin(), left.end(), [&](const auto& candidate) {
      return candidate.second <= best * kKernelChoiceMargin;
    });
    order.push_back(next->first);
    left.erase(next);
  }
  return order;
}

absl::StatusOr<KernelPreferences> KernelPreferences::FromProfile(const KernelProfile& profile) {
  KernelPreferences preferences;
  for (const KernelMeasurement& measurement : profile.measurements) {
    const KernelClass& c = measurement.kernel_class;
    const std::vector<std::string_view> list = KernelNames(c.op, c.device);
    for (const KernelTime& time : measurement.times) {
      if (std::find(list.begin(), list.end(), time.kernel) == list.end()) {
        return InvalidArgument("kernel profile: there is no ", std::string(Name(c.op)),
                               " kernel named '", time.kernel, "' on ",
                               std::string(Name(c.device)));
      }
    }
    KernelPreference preference = {OrderByTime(list, measurement.times), measurement.times};
    if (!preferences.by_class_.emplace(c.Id(), std::move(preference)).second) {
      return InvalidArgument("kernel profile: given twice: ", Describe(c));
    }
  }
  return preferences;
}

const KernelPreference* KernelPreferences::Find(const OpFacts& facts, DeviceKind device) const {
  if (by_class_.empty() || facts.batch_invariant) return nullptr;
  const auto kernel_class = ClassOf(facts, device);
  if (!kernel_class) return nullptr;
  const auto found = by_class_.find(kernel_class->Id());
  return found == by_class_.end() ? nullptr : &found->second;
}

std::string ExplainKernel(const KernelPreference* preference, std::string_view kernel) {
  constexpr char kListOrder[] = "list order";
  if (preference == nullptr) return kListOrder;
  double own = 0.0, other = 0.0;
  std::string_view other_name;
  for (const KernelTime& time : preference->times) {
    if (time.kernel == kernel) {
      own = time.seconds;
    } else if (other == 0.0 || time.seconds < other) {
      other = time.seconds;
      other_name = time.kernel;
    }
  }
  if (own == 0.0) return kListOrder;
  if (other == 0.0) return "measured: the only one";
  return absl::StrFormat("measured: %.2fx as fast as %s on this machine", other / own,
                         std::string(other_name));
}

std::string DefaultKernelProfilePath(std::string_view machine) {
  return DefaultProfilePath("kernels", machine);
}

absl::StatusOr<KernelPreferences> LoadKernelPreferences(const std::string& path,
                                                        std::string_view machine, bool required,
                                                        std::string* note) {
  std::error_code error;
  if (!required && (path.empty() || !std::filesystem::exists(path, error))) {
    *note = "not measured on this machine (tandem calibrate kernels)";
    return KernelPreferences();
  }
  absl::StatusOr<KernelPreferences> loaded = Load(path, machine);
  if (loaded.ok()) {
    *note = absl::StrCat("measured, ", loaded->size(), " classes of calls in ", path);
    return loaded;
  }
  if (required) return loaded.status();
  *note = "ignored: " + Message(loaded.status());
  if (note->find(path) == std::string::npos) absl::StrAppend(note, " (", path, ")");
  return KernelPreferences();
}

absl::Status SaveKernelProfile(const std::string& path, const KernelProfile& profile) {
  return WriteProfileFile(kWhat, path, ToJson(profile));
}

}  // namespace tandem
