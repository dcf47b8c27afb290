// Lists of lengths and indices as kernels read them. Kernels cannot report a bad entry: they must
// only not follow it.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace tandem::cuda {

// One number per sequence, in device memory; data is nullptr if it was not given.
struct DeviceList {
  const int32_t* data = nullptr;
  int64_t stride = 0;

  // Entry i brought into low..high (a bad number must not lead outside any memory), or `otherwise`.
  TANDEM_HOST_DEVICE int64_t At(int64_t i, int64_t low, int64_t high, int64_t otherwise) const {
    if (data == nullptr) return otherwise;
    const int64_t value = data[i * stride];
    return value < low ? low : value > high ? high : value;
  }
};

// Entry (i, j) is data[i * row_stride + j * stride].
struct DeviceTable {
  const int32_t* data = nullptr;
  int64_t row_stride = 0, stride = 0;

  TANDEM_HOST_DEVICE int64_t At(int64_t i, int64_t j) const {
    return data[i * row_stride + j * stride];
  }
};

}  // namespace tandem::cuda
