// The counting form of cuda/device/shared.h's SharedCarver, for host code.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace tandem::cuda {

class SharedBytes {
 public:
  template <typename T>
  TANDEM_HOST_DEVICE T* Take(int64_t count, int64_t alignment = 16) {
    total_ = Align(total_, alignment) + count * static_cast<int64_t>(sizeof(T));
    return nullptr;
  }
  TANDEM_HOST_DEVICE int64_t total() const { return total_; }

  static TANDEM_HOST_DEVICE int64_t Align(int64_t offset, int64_t alignment) {
    return (offset + alignment - 1) / alignment * alignment;
  }

 private:
  int64_t total_ = 0;
};

}  // namespace tandem::cuda
