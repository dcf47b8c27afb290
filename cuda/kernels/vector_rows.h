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

// These two of a plain type, present: are the elements of a row side by side, and does every row
// begin on 16 bytes?
inline bool HasRowsSideBySide(const TensorView& view) {
  return view.dim(-1) <= 1 || view.stride(-1) == 1;
}
inline bool HasVectorRows(const TensorView& view) {
  bool aligned = HasRowsSideBySide(view) && IsVectorAligned(view);
  for (int i = 0; i < view.rank() - 1; ++i) {
    const bool steps = view.dim(i) > 1;
    aligned = aligned && (!steps || view.stride(i) * BlockBytes(view.dtype) % kVectorBytes == 0);
  }
  return aligned;
}

// The same as an answer of `supports`.
inline absl::Status CheckVectorRows(std::string_view name, const TensorView& view) {
  if (HasVectorRows(view)) return absl::OkStatus();
  if (!HasRowsSideBySide(view)) {
    return Unimplemented(std::string(name), ": needs the elements of a row side by side");
  }
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
