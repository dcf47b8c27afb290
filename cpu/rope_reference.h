// One row rotated plainly (core/ops/rope.h), for the reference kernels of rope and kv_append:
// angle, cosine and sine in f64 for every pair; any strides.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/ops/rope.h"
#include "cpu/strided.h"

namespace tandem::cpu {

// Row of token `token` of sequence `sequence`; rows begin at the given offsets, their elements lie
// at the views' last strides. Works in place.
inline void RotateRowReference(const RopeRotation& rotation, int64_t sequence, int64_t token,
                               const TensorView& x, int64_t x_row, const TensorView& out,
                               int64_t out_row) {
  const TensorView& positions = rotation.positions;
  const int64_t pairs = rotation.inv_freq.dim(0);
  const bool half = rotation.pairing == RopePairing::kHalf;
  const double position = *positions.At<int32_t>(
      token * positions.stride(-1) + (positions.rank() == 2 ? sequence * positions.stride(0) : 0));
  for (int64_t i = 0; i < pairs; ++i) {
    const double angle = position * *rotation.inv_freq.At<float>(i * rotation.inv_freq.stride(0));
    const double cosine = rotation.magnitude * std::cos(angle);
    const double sine = rotation.magnitude * std::sin(angle);
    const int64_t a = half ? i : 2 * i;
    const int64_t c = half ? i + pairs : 2 * i + 1;
    const double x_a = LoadElement(x, x_row + a * x.stride(-1));
    const double x_c = LoadElement(x, x_row + c * x.stride(-1));
    StoreElement(out, out_row + a * out.stride(-1), static_cast<float>(x_a * cosine - x_c * sine));
    StoreElement(out, out_row + c * out.stride(-1), static_cast<float>(x_a * sine + x_c * cosine));
  }
  for (int64_t d = 2 * pairs; d < x.dim(-1); ++d) {
    StoreElement(out, out_row + d * out.stride(-1), LoadElement(x, x_row + d * x.stride(-1)));
  }
}

}  // namespace tandem::cpu
