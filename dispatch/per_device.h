// One value per kind of device.
#pragma once

#include <array>
#include <cstddef>

#include "core/device.h"

namespace tandem {

inline constexpr size_t kNumDeviceKinds = 2;
inline constexpr std::array<DeviceKind, kNumDeviceKinds> kDeviceKinds = {DeviceKind::kCpu,
                                                                         DeviceKind::kCuda};

template <typename T>
struct PerDevice {
  std::array<T, kNumDeviceKinds> values = {};
  constexpr T& operator[](DeviceKind kind) { return values[static_cast<size_t>(kind)]; }
  constexpr const T& operator[](DeviceKind kind) const { return values[static_cast<size_t>(kind)]; }
  friend bool operator==(const PerDevice&, const PerDevice&) = default;
};

inline DeviceKind Other(DeviceKind kind) {
  return kind == DeviceKind::kCpu ? DeviceKind::kCuda : DeviceKind::kCpu;
}

}  // namespace tandem
