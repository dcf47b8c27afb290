// How kernels see a tensor: pointer, extents and strides, without the host's types around them.
#pragma once

#include <cstdint>

#include "core/ops/mask_rule.h"  // TANDEM_HOST_DEVICE

namespace tandem::cuda {

// Up to rank 4; dimensions are those of the view, strides count elements.
struct DeviceTensor {
  void* data = nullptr;
  int64_t dims[4] = {1, 1, 1, 1};
  int64_t strides[4] = {0, 0, 0, 0};

  template <typename T>
  TANDEM_HOST_DEVICE T* As() const {
    return static_cast<T*>(data);
  }
};

}  // namespace tandem::cuda
