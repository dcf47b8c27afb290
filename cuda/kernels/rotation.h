// RopeRotation -> RotationParams, and what the vector kernels ask of it, on the host.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "core/ops/rope.h"
#include "core/status.h"
#include "cuda/kernels/lookup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/vector_rows.h"

namespace tandem::cuda {

inline RotationParams ToRotationParams(const RopeRotation& rotation) {
  RotationParams params;
  if (!rotation.present()) return params;
  params.positions = rotation.positions.As<const int32_t>();
  params.sequence_stride = rotation.positions.rank() == 2 ? rotation.positions.stride(0) : 0;
  params.token_stride = rotation.positions.stride(-1);
  params.inv_freq = rotation.inv_freq.As<const float>();
  params.inv_freq_stride = rotation.inv_freq.stride(0);
  params.pairs = rotation.inv_freq.dim(0);
  params.half = rotation.pairing == RopePairing::kHalf;
  params.magnitude = rotation.magnitude;
  return params;
}

// The vector kernels rotate rows as a whole, a thread 16 elements (or do not rotate), and
// hold the cosines and sines of a token in shared memory.
inline constexpr int64_t kRotatedElements = 2 * kVectorElements;
inline constexpr int64_t kMaxRotatedRow = 1024;
inline absl::Status CheckRotatedRows(std::string_view name, const RopeRotation& rotation,
                                     const TensorView& x) {
  const int64_t columns = x.dim(3);
  if (columns % kRotatedElements != 0 || columns == 0 || columns > kMaxRotatedRow) {
    return Unimplemented(std::string(name), ": needs a head dimension that is a multiple of ",
                         kRotatedElements, " up to ", kMaxRotatedRow, ", got ", columns);
  }
  if (rotation.present() && 2 * rotation.inv_freq.dim(0) != columns) {
    return Unimplemented(std::string(name), ": rotates all of a head's dimensions or none");
  }
  return CheckVectorRows(name, x);
}
inline int64_t RotationTableBytes(const RopeRotation& rotation) {
  SharedBytes shared;
  const int64_t pairs = rotation.present() ? rotation.inv_freq.dim(0) : 0;
  shared.Take<float>(pairs);
  shared.Take<float>(pairs);
  return std::max<int64_t>(shared.total(), kVectorBytes);  // pieces of no bytes need a place, too
}

}  // namespace tandem::cuda
