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

// Cosine and sine of the angle of pair i, times the magnitude: in f64, rounded once (see
// core/ops/rope.h).
struct Rotation {
  float cosine, sine;
};
__device__ inline Rotation RotationOf(const RotationParams& r, int64_t sequence, int64_t token,
                                      int64_t i) {
  const int32_t position = r.positions[sequence * r.sequence_stride + token * r.token_stride];
  constexpr double kInversePi = 0.31830988618379067154;
  const double half_turns = static_cast<double>(position) *
                            static_cast<double>(r.inv_freq[i * r.inv_freq_stride]) * kInversePi;
  const SinCosF64 exact = SinCosPiF64(half_turns);
  return {static_cast<float>(r.magnitude * exact.cosine),
          static_cast<float>(r.magnitude * exact.sine)};
}

// Every kernel that rotates gives the bits of this.
__device__ inline Pair Rotate(const Rotation& r, Pair x) {
  return {MultiplyAdd(x.a, r.cosine, -Multiply(x.b, r.sine)),
          MultiplyAdd(x.a, r.sine, Multiply(x.b, r.cosine))};
}
__device__ inline Pair RotatePair(const RotationParams& r, int64_t sequence, int64_t token,
                                  int64_t i, Pair x) {
  return Rotate(RotationOf(r, sequence, token, i), x);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
