// Where memory lives and kernels run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace tandem {

enum class DeviceKind : uint8_t { kCpu, kCuda };

// Index of the emulated CUDA device (cuda/emulator/): kernels of the GPU, run by the CPU, for
// tests.
inline constexpr int32_t kEmulatedDevice = -1;

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int32_t index = 0;  // CUDA ordinal, or kEmulatedDevice

  friend bool operator==(const Device&, const Device&) = default;
};

inline std::string_view Name(DeviceKind kind) { return kind == DeviceKind::kCpu ? "cpu" : "cuda"; }

// "cpu", "cuda:0", "cuda:emulated"
inline std::string Name(Device device) {
  if (device.kind == DeviceKind::kCpu) return "cpu";
  if (device.index == kEmulatedDevice) return "cuda:emulated";
  return absl::StrCat("cuda:", device.index);
}

}  // namespace tandem
