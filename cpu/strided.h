// Element access for the reference kernels: any float dtype, any strides, one element at a time.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/tensor_view.h"

namespace tandem::cpu {

// The element `offset` elements from the base, as f32. Requires IsFloat(view.dtype).
inline float LoadElement(const TensorView& view, int64_t offset) {
  return DispatchFloat(view.dtype, [&]<typename T>() { return ToFloat(*view.At<T>(offset)); });
}

inline void StoreElement(const TensorView& view, int64_t offset, float value) {
  DispatchFloat(view.dtype, [&]<typename T>() { *view.At<T>(offset) = FromFloat<T>(value); });
}

// Offset of the first element of row `row`, where all dimensions but the last are counted
// row-major.
inline int64_t RowOffset(const TensorView& view, int64_t row) {
  int64_t offset = 0;
  for (int axis = view.rank() - 2; axis >= 0; --axis) {
    offset += row % view.dim(axis) * view.stride(axis);
    row /= view.dim(axis);
  }
  return offset;
}

// Number of rows: the product of all extents but the last.
inline int64_t NumRows(const TensorView& view) {
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < view.rank(); ++axis) rows *= view.dim(axis);
  return rows;
}

}  // namespace tandem::cpu
