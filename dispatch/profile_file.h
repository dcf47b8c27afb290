// Files of measurements, one per machine (kernel profiles, cost profiles): where they are, reading
// them with errors that name the field, writing them so that no reader sees half of one.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/op.h"

namespace tandem {

// Reads the fields of one JSON object, which must outlive this. Errors are InvalidArgument:
// "<what>: <where><name>: expected ...".
class ObjectReader {
 public:
  ObjectReader(std::string what, const nlohmann::json& object, std::string where);

  // nullptr if it is not there.
  const nlohmann::json* Find(const char* name) const;
  absl::Status String(const char* name, std::string& value) const;
  // 0 .. limit - 1.
  absl::Status Int(const char* name, int64_t limit, uint8_t& value) const;
  absl::Status Bool(const char* name, bool& value) const;
  absl::Status Number(const char* name, double& value) const;
  // Finite and > 0.
  absl::Status Seconds(const char* name, double& value) const;
  absl::Status Type(const char* name, DType& value) const;
  absl::Status Op(const char* name, OpKind& value) const;
  absl::Status Kind(const char* name, DeviceKind& value) const;
  // The field "format" says this.
  absl::Status Format(std::string_view expected) const;
  absl::Status Bad(const char* name, const std::string& expected) const;

 private:
  std::string what_;
  const nlohmann::json& object_;
  std::string where_;
};

// One value per line; bytes that are no UTF-8 (in a machine's name) are replaced.
std::string DumpJson(const nlohmann::json& json);

// $XDG_CACHE_HOME/tandem/<kind>-<hash of machine>.json (~/.cache without it); empty if neither that
// nor $HOME is set.
std::string DefaultProfilePath(std::string_view kind, std::string_view machine);

// "tandem 1.0; AMD EPYC ..., 8 threads; cuda:0 ..." in parts: what a profile belongs to.
std::vector<std::string> MachineParts(std::string_view machine);
// Of the profiles in the folder of `path` (which is not there itself), one that was measured on
// this machine before it changed: with the same CPU, instruction set and threads and as many
// devices, but another version, GPU or driver. What it was measured with; empty: there is none.
std::string FindStaleProfile(std::string_view kind, const std::string& path,
                             std::string_view machine);

// The text of a regular file of at most 16 MiB. InvalidArgument otherwise, beginning with `what`.
absl::StatusOr<std::string> ReadProfileFile(std::string_view what, const std::string& path);
// Writes beside and renames; makes the folder. InvalidArgument if that fails.
absl::Status WriteProfileFile(std::string_view what, const std::string& path,
                              const std::string& text);

}  // namespace tandem
