// What the vector kernels ask of their operands, on the host: rows of elements that lie side by
// side, each beginning on 16 bytes.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "core/status.h"
#include "core/tensor_view.h"
#include "cuda/stream.h"

namespace tandem::cuda {

inline bool IsVectorAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % kVectorBytes == 0;
}

// Of a plain type, present.
inline absl::Status CheckVectorRows(std::string_view name, const TensorView& view) {
  const int last = view.rank() - 1;
  if (view.dim(last) > 1 && view.stride(last) != 1) {
    return Unimplemented(std::string(name), ": needs the elements of a row side by side");
  }
  bool aligned = IsVectorAligned(view);
  for (int i = 0; i < last; ++i) {
    const bool steps = view.dim(i) > 1;
    aligned = aligned && (!steps || view.stride(i) * BlockBytes(view.dtype) % kVectorBytes == 0);
  }
  if (aligned) return absl::OkStatus();
  return Unimplemented(std::string(name), ": needs rows that begin on ", kVectorBytes, " bytes");
}

inline absl::Status CheckWholeVectors(std::string_view name, int64_t columns) {
  if (columns % kVectorElements == 0) return absl::OkStatus();
  return Unimplemented(std::string(name), ": needs a multiple of ", kVectorElements, ", got ",
                       columns);
}

// Of operands that are seen as one row each, because nothing lies between their rows.
inline absl::Status CheckVectorRun(std::string_view name, const TensorView& view) {
  if (IsVectorAligned(view)) return absl::OkStatus();
  return Unimplemented(std::string(name), ": needs to begin on ", kVectorBytes, " bytes");
}

// Of the element-wise kernels: threads along a row, in a loop over its vectors and single elements;
// grid.y along the rows.
inline LaunchConfig VectorConfig(const CudaStream& stream, int64_t rows, int64_t columns) {
  const int64_t vectors = (columns + kVectorElements - 1) / kVectorElements;
  LaunchConfig config;
  config.block.x = std::min<int64_t>(kVectorThreads, (vectors + 31) / 32 * 32);
  if (config.block.x == 0) config.block.x = 32;
  // At least 8 threads for the elements behind the last whole vector: 32 have them.
  config.grid.x = rows == 0 ? 0 : ElementBlocks(stream, vectors, config.block.x);
  config.grid.y = std::clamp<int64_t>(rows, 1, 65535);
  return config;
}

}  // namespace tandem::cuda
