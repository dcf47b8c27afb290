// How kernels see a tensor: pointer, dtype, extents and strides, without the host's types around
// them.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/host_device.h"

namespace tandem::cuda {

// Up to rank 4; dimensions are those of the view, strides count elements. Absent: data is null.
struct DeviceTensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t dims[4] = {1, 1, 1, 1};
  int64_t strides[4] = {0, 0, 0, 0};

  TANDEM_HOST_DEVICE bool present() const { return data != nullptr; }
  template <typename T>
  TANDEM_HOST_DEVICE T* As() const {
    return static_cast<T*>(data);
  }
};

// The vector kernels move this much at a time, in blocks of at most so many threads.
inline constexpr int kVectorBytes = 16;
inline constexpr int kVectorElements = 8;  // 16 bytes of a 16-bit type, 2 x 16 of f32
inline constexpr int kVectorThreads = 256;

// Rows of a tensor whose last dimension is the row: dims and strides are those of a rank-4 view
// with leading extents of 1.
TANDEM_HOST_DEVICE inline int64_t RowOffset(const DeviceTensor& t, int64_t row) {
  const int64_t inner = row % t.dims[2], rest = row / t.dims[2];
  return rest / t.dims[1] * t.strides[0] + rest % t.dims[1] * t.strides[1] + inner * t.strides[2];
}

}  // namespace tandem::cuda
