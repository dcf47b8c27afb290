#include "dispatch/kernel_choice.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/registry.h"

namespace tandem {
namespace {

constexpr std::string_view kFormat = "tandem kernel profile 1";
constexpr int64_t kMaxProfileBytes = int64_t{16} << 20;

uint8_t RowsClass(int64_t rows) {
  const int bits = rows <= 1 ? 0 : std::bit_width(static_cast<uint64_t>(rows - 1));
  return static_cast<uint8_t>(std::min(bits, KernelClass::kRows - 1));
}

// Reads the fields of one object, naming what is wrong.
class Reader {
 public:
  Reader(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  absl::Status String(const char* name, std::string& value) const {
    const auto it = object_.find(name);
    if (it == object_.end() || !it->is_string()) return Bad(name, "a string");
    value = it->get<std::string>();
    return absl::OkStatus();
  }
  absl::Status Int(const char* name, int64_t limit, uint8_t& value) const {
    const auto it = object_.find(name);
    if (it == object_.end() || !it->is_number_integer() || it->get<int64_t>() < 0 ||
        it->get<int64_t>() >= limit) {
      return Bad(name, absl::StrCat("an integer of 0..", limit - 1));
    }
    value = static_cast<uint8_t>(it->get<int64_t>());
    return absl::OkStatus();
  }
  absl::Status Bool(const char* name, bool& value) const {
    const auto it = object_.find(name);
    if (it == object_.end() || !it->is_boolean()) return Bad(name, "true or false");
    value = it->get<bool>();
    return absl::OkStatus();
  }
  absl::Status Seconds(const char* name, double& value) const {
    const auto it = object_.find(name);
    if (it == object_.end() || !it->is_number() || !std::isfinite(it->get<double>()) ||
        it->get<double>() <= 0.0) {
      return Bad(name, "a number > 0");
    }
    value = it->get<double>();
    return absl::OkStatus();
  }
  absl::Status Type(const char* name, DType& value) const {
    std::string text;
    TANDEM_RETURN_IF_ERROR(String(name, text));
    const auto dtype = ParseDType(text);
    if (!dtype) return Bad(name, "a dtype");
    value = *dtype;
    return absl::OkStatus();
  }
  absl::Status Bad(const char* name, const std::string& expected) const {
    return InvalidArgument("kernel profile: ", where_, name, ": expected ", expected);
  }

 private:
  const nlohmann::json& object_;
  std::string where_;
};

absl::StatusOr<KernelMeasurement> ParseMeasurement(const nlohmann::json& json, size_t index) {
  const std::string where = absl::StrCat("classes[", index, "].");
  const Reader read(json, where);
  if (!json.is_object()) return read.Bad("", "an object");
  KernelMeasurement measurement;
  KernelClass& c = measurement.kernel_class;
  std::string op, device;
  TANDEM_RETURN_IF_ERROR(read.String("op", op));
  const auto known = std::find(kOpNames.begin(), kOpNames.end(), op);
  if (known == kOpNames.end()) return read.Bad("op", "the name of an op");
  c.op = static_cast<OpKind>(known - kOpNames.begin());
  TANDEM_RETURN_IF_ERROR(read.String("device", device));
  if (device != "cpu" && device != "cuda") return read.Bad("device", "cpu or cuda");
  c.device = device == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda;
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
    const Reader read_kernel(item, where + "kernels.");
    if (!item.is_object()) return read_kernel.Bad("", "an object");
    KernelTime time;
    TANDEM_RETURN_IF_ERROR(read_kernel.String("name", time.kernel));
    TANDEM_RETURN_IF_ERROR(read_kernel.Seconds("seconds", time.seconds));
    measurement.times.push_back(std::move(time));
  }
  return measurement;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return InvalidArgument("kernel profile: cannot read '", path, "'");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text;
  text.resize(static_cast<size_t>(kMaxProfileBytes) + 1);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof() || file.bad()) {
    return InvalidArgument("kernel profile: cannot read '", path, "', or it is larger than ",
                           kMaxProfileBytes, " bytes");
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

absl::StatusOr<KernelPreferences> Load(const std::string& path, std::string_view machine) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
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
  // Names are ours, but the machine's may hold anything.
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::StatusOr<KernelProfile> KernelProfileFromJson(std::string_view text) {
  const auto json = nlohmann::json::parse(text.begin(), text.end(), nullptr,
                                          /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("kernel profile: expected a JSON object");
  const Reader read(json, "");
  KernelProfile profile;
  std::string format;
  TANDEM_RETURN_IF_ERROR(read.String("format", format));
  if (format != kFormat) return read.Bad("format", "'" + std::string(kFormat) + "'");
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
  std::string folder;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0') {
    folder = cache;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    folder = std::string(home) + "/.cache";
  } else {
    return "";
  }
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char c : machine) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211u;
  return absl::StrFormat("%s/tandem/kernels-%016x.json", folder, hash);
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
  return KernelPreferences();
}

absl::Status SaveKernelProfile(const std::string& path, const KernelProfile& profile) {
  if (path.empty()) {
    return InvalidArgument("kernel profile: no path, and neither XDG_CACHE_HOME nor HOME is set");
  }
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  const std::string beside = absl::StrCat(path, ".", getpid());
  std::ofstream file(beside, std::ios::binary);
  file << ToJson(profile);
  file.close();
  if (!file) return InvalidArgument("kernel profile: cannot write '", beside, "'");
  std::filesystem::rename(beside, path, error);
  if (!error) return absl::OkStatus();
  const std::string reason = error.message();
  std::filesystem::remove(beside, error);
  return InvalidArgument("kernel profile: cannot write '", path, "': ", reason);
}

}  // namespace tandem
