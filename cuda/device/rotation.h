// Rotary embedding of one pair of elements, for the kernels that rotate.
#pragma once

#include "cuda/device/math.h"
#include "cuda/device/target.h"
#include "cuda/kernels/lookup.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

struct Pair {
  float a, b;
};
// Indices of the elements of pair i.
__device__ inline int64_t PairFirst(const RotationParams& r, int64_t i) {
  return r.half ? i : 2 * i;
}
__device__ inline int64_t PairSecond(const RotationParams& r, int64_t i) {
  return r.half ? i + r.pairs : 2 * i + 1;
}

// The angle in f64, rounded once: see core/ops/rope.h.
__device__ inline Pair RotatePair(const RotationParams& r, int64_t sequence, int64_t token,
                                  int64_t i, Pair x) {
  const int32_t position = r.positions[sequence * r.sequence_stride + token * r.token_stride];
  constexpr double kInversePi = 0.31830988618379067154;
  const double half_turns = static_cast<double>(position) *
                            static_cast<double>(r.inv_freq[i * r.inv_freq_stride]) * kInversePi;
  const double cosine = r.magnitude * CosPiF64(half_turns);
  const double sine = r.magnitude * SinPiF64(half_turns);
  return {static_cast<float>(x.a * cosine - x.b * sine),
          static_cast<float>(x.a * sine + x.b * cosine)};
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
