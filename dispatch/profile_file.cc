#include "dispatch/profile_file.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/status.h"

namespace tandem {
namespace {

constexpr int64_t kMaxProfileBytes = int64_t{16} << 20;

}  // namespace

ObjectReader::ObjectReader(std::string what, const nlohmann::json& object, std::string where)
    : what_(std::move(what)), object_(object), where_(std::move(where)) {}

const nlohmann::json* ObjectReader::Find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() ? nullptr : &*it;
}

absl::Status ObjectReader::String(const char* name, std::string& value) const {
  const nlohmann::json* field = Find(name);
  if (field == nullptr || !field->is_string()) return Bad(name, "a string");
  value = field->get<std::string>();
  return absl::OkStatus();
}

absl::Status ObjectReader::Int(const char* name, int64_t limit, uint8_t& value) const {
  const nlohmann::json* field = Find(name);
  if (field == nullptr || !field->is_number_integer() || field->get<int64_t>() < 0 ||
      field->get<int64_t>() >= limit) {
    return Bad(name, absl::StrCat("an integer of 0..", limit - 1));
  }
  value = static_cast<uint8_t>(field->get<int64_t>());
  return absl::OkStatus();
}

absl::Status ObjectReader::Bool(const char* name, bool& value) const {
  const nlohmann::json* field = Find(name);
  if (field == nullptr || !field->is_boolean()) return Bad(name, "true or false");
  value = field->get<bool>();
  return absl::OkStatus();
}

absl::Status ObjectReader::Number(const char* name, double& value) const {
  const nlohmann::json* field = Find(name);
  if (field == nullptr || !field->is_number()) return Bad(name, "a number");
  value = field->get<double>();
  return absl::OkStatus();
}

absl::Status ObjectReader::Seconds(const char* name, double& value) const {
  double number = 0.0;
  if (!Number(name, number).ok() || !std::isfinite(number) || number <= 0.0) {
    return Bad(name, "a number > 0");
  }
  value = number;
  return absl::OkStatus();
}

absl::Status ObjectReader::Type(const char* name, DType& value) const {
  std::string text;
  TANDEM_RETURN_IF_ERROR(String(name, text));
  const auto dtype = ParseDType(text);
  if (!dtype) return Bad(name, "a dtype");
  value = *dtype;
  return absl::OkStatus();
}

absl::Status ObjectReader::Op(const char* name, OpKind& value) const {
  std::string text;
  TANDEM_RETURN_IF_ERROR(String(name, text));
  const auto known = std::find(kOpNames.begin(), kOpNames.end(), text);
  if (known == kOpNames.end()) return Bad(name, "the name of an op");
  value = static_cast<OpKind>(known - kOpNames.begin());
  return absl::OkStatus();
}

absl::Status ObjectReader::Kind(const char* name, DeviceKind& value) const {
  std::string text;
  TANDEM_RETURN_IF_ERROR(String(name, text));
  if (text != "cpu" && text != "cuda") return Bad(name, "cpu or cuda");
  value = text == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda;
  return absl::OkStatus();
}

absl::Status ObjectReader::Format(std::string_view expected) const {
  std::string format;
  TANDEM_RETURN_IF_ERROR(String("format", format));
  if (format != expected) return Bad("format", "'" + std::string(expected) + "'");
  return absl::OkStatus();
}

absl::Status ObjectReader::Bad(const char* name, const std::string& expected) const {
  return InvalidArgument(what_, ": ", where_, name, ": expected ", expected);
}

std::string DumpJson(const nlohmann::json& json) {
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string DefaultProfilePath(std::string_view kind, std::string_view machine) {
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
  return absl::StrFormat("%s/tandem/%s-%016x.json", folder, std::string(kind), hash);
}

std::vector<std::string> MachineParts(std::string_view machine) {
  return absl::StrSplit(std::string(machine), "; ");
}

std::string FindStaleProfile(std::string_view kind, const std::string& path,
                             std::string_view machine) {
  constexpr int kMostFiles = 200;
  const std::vector<std::string> own = MachineParts(machine);
  const std::string prefix = absl::StrCat(std::string(kind), "-");
  std::error_code error;
  std::string newest;
  std::filesystem::file_time_type when;
  int files = 0;
  for (std::filesystem::directory_iterator at(std::filesystem::path(path).parent_path(), error),
       end;
       !error && at != end && files < kMostFiles; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (!name.starts_with(prefix) || !name.ends_with(".json")) continue;
    ++files;
    const absl::StatusOr<std::string> text = ReadProfileFile(kind, at->path().string());
    if (!text.ok()) continue;
    const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    std::string measured;
    if (!ObjectReader(std::string(kind), json, "").String("machine", measured).ok()) continue;
    const std::vector<std::string> parts = MachineParts(measured);
    // tandem's version; the CPU; the GPU and its driver.
    if (parts.size() != own.size() || parts.size() < 3 || parts[1] != own[1] ||
        measured == machine) {
      continue;
    }
    const std::filesystem::file_time_type written = at->last_write_time(error);
    if (newest.empty() || written > when) {
      newest = measured;
      when = written;
    }
  }
  return newest;
}

absl::StatusOr<std::string> ReadProfileFile(std::string_view what, const std::string& path) {
  const std::string name(what);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return InvalidArgument(name, ": cannot read '", path, "'");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text;
  text.resize(static_cast<size_t>(kMaxProfileBytes) + 1);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.eof() || file.bad()) {
    return InvalidArgument(name, ": cannot read '", path, "', or it is larger than ",
                           kMaxProfileBytes, " bytes");
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

absl::Status WriteProfileFile(std::string_view what, const std::string& path,
                              const std::string& text) {
  const std::string name(what);
  if (path.empty()) {
    return InvalidArgument(name, ": no path, and neither XDG_CACHE_HOME nor HOME is set");
  }
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  const std::string beside = absl::StrCat(path, ".", getpid());
  std::ofstream file(beside, std::ios::binary);
  file << text;
  file.close();
  if (!file) return InvalidArgument(name, ": cannot write '", beside, "'");
  std::filesystem::rename(beside, path, error);
  if (!error) return absl::OkStatus();
  const std::string reason = error.message();
  std::filesystem::remove(beside, error);
  return InvalidArgument(name, ": cannot write '", path, "': ", reason);
}

}  // namespace tandem
