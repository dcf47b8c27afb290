// RopeRotation -> RotationParams, on the host.
#pragma once

#include "core/ops/rope.h"
#include "cuda/kernels/lookup.h"

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

}  // namespace tandem::cuda
