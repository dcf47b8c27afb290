// Where memory lives and kernels run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace tandem {

enum class DeviceKind : uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int32_t index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

inline std::string_view Name(DeviceKind kind) { return kind == DeviceKind::kCpu ? "cpu" : "cuda"; }

// "cpu", "cuda:0"
inline std::string Name(Device device) {
  if (device.kind == DeviceKind::kCpu) return "cpu";
  return absl::StrCat("cuda:", device.index);
}

}  // namespace tandem
