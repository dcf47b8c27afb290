// How GGUF's formats of 256 elements find the scales of a sub-block: the searches of ggml's
// reference quantisers (make_qkx2_quants, make_qx_quants), restated. f32 throughout, sums in order
// of the elements, no fused multiply-adds: so restated, the bytes are ggml's. Kernels of every
// device call these.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/host_device.h"

// Before a loop that stays one on a GPU: unrolled, the searches would be thousands of instructions.
#ifdef __CUDA_ARCH__
#define TANDEM_KEEP_LOOP _Pragma("unroll 1")
#else
#define TANDEM_KEEP_LOOP
#endif

namespace tandem {

// The integer nearest to x, ties to even, for |x| < 2^22; something harmless elsewhere. NaN: what
// the low bits of the CPU's quiet NaN give, which a GPU's does not have.
TANDEM_HOST_DEVICE inline int NearestInteger(float x) {
  const float sum = x + 12582912.0f;  // 1.5 * 2^23
#if defined(__CUDA_ARCH__)
  if (sum != sum) return 0;
#endif
  return static_cast<int>(std::bit_cast<uint32_t>(sum) & 0x7FFFFFu) - 0x400000;
}

// q4_k and q5_k, 8 sub-blocks of 32, x = scale * q - min. What distinguishes the two: the largest
// q, and the roundings that are tried: those of (kMaxQuant + kFirstTrial + 0.1 i) / (max - low) for
// i = 0 .. kTrials, with low the best minimum so far.
template <typename Block>
struct ScaleMinTraits;
template <>
struct ScaleMinTraits<BlockQ4_K> {
  static constexpr int kMaxQuant = 15;
  static constexpr float kFirstTrial = -1.0f;
  static constexpr int kTrials = 20;
};
template <>
struct ScaleMinTraits<BlockQ5_K> {
  static constexpr int kMaxQuant = 31;
  static constexpr float kFirstTrial = -0.5f;
  static constexpr int kTrials = 15;
};

inline constexpr int kSubBlocks = 8;
inline constexpr int kSubBlock = 32;

// A sub-block's fit before its scale and minimum are quantised: x ~ scale * q - min, where q is
// NearestInteger(inverse * (x - low)), clamped.
struct ScaleMinFit {
  float scale, min;
  float inverse, low;
};

TANDEM_HOST_DEVICE inline int ClampInteger(int x, int low, int high) {
  return x < low ? low : x > high ? high : x;
}

// The fit of 32 elements.
template <typename Block>
TANDEM_HOST_DEVICE ScaleMinFit FitScaleMin(const float* x) {
  using Traits = ScaleMinTraits<Block>;
  constexpr int kMax = Traits::kMaxQuant;
  float squares = 0.0f;
  TANDEM_KEEP_LOOP
  for (int i = 0; i < kSubBlock; ++i) squares += x[i] * x[i];
  const float rms = sqrtf(squares / kSubBlock);
  const auto weight = [&](int i) { return rms + fabsf(x[i]); };
  float low = x[0], high = x[0], sum_w = 0.0f, sum_x = 0.0f;
  TANDEM_KEEP_LOOP
  for (int i = 0; i < kSubBlock; ++i) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum_w += weight(i);
    sum_x += weight(i) * x[i];
  }
  if (low > 0.0f) low = 0.0f;
  if (high == low) return {0.0f, -low, 0.0f, low};
  const auto quant = [&](float inverse, int i) {
    return static_cast<float>(ClampInteger(NearestInteger(inverse * (x[i] - low)), 0, kMax));
  };
  const auto error = [&](float scale, float min, float inverse) {
    float sum = 0.0f;
    TANDEM_KEEP_LOOP
    for (int i = 0; i < kSubBlock; ++i) {
      const float difference = scale * quant(inverse, i) + min - x[i];
      sum += weight(i) * (difference * difference);
    }
    return sum;
  };
  ScaleMinFit best = {0.0f, -low, static_cast<float>(kMax) / (high - low), low};
  best.scale = 1.0f / best.inverse;
  float best_error = error(best.scale, low, best.inverse);
  TANDEM_KEEP_LOOP
  for (int trial = 0; trial <= Traits::kTrials; ++trial) {
    const float inverse =
        (Traits::kFirstTrial + 0.1f * static_cast<float>(trial) + static_cast<float>(kMax)) /
        (high - low);
    float sum_q = 0.0f, sum_qq = 0.0f, sum_xq = 0.0f;
    TANDEM_KEEP_LOOP
    for (int i = 0; i < kSubBlock; ++i) {
      const float q = quant(inverse, i);
      const float wq = weight(i) * q;
      sum_q += wq;
      sum_qq += wq * q;
      sum_xq += wq * x[i];
    }
    const float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0.0f)) continue;
    float scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
    float min = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
    if (min > 0.0f) {
      min = 0.0f;
      scale = sum_xq / sum_qq;
    }
    const float trial_error = error(scale, min, inverse);
    if (trial_error < best_error) {
      best = {scale, -min, inverse, low};
      best_error = trial_error;
      low = min;
    }
  }
  return best;
}

// q6_k, 16 sub-blocks of 16, x = scale * (q - 32).
inline constexpr int kQ6SubBlocks = 16;
inline constexpr int kQ6SubBlock = 16;
// ggml's: below it, what is to be quantised counts as zero.
inline constexpr float kZeroBelow = 1e-15f;

// A sub-block's fit: x ~ scale * q, where q = NearestInteger(inverse * x), clamped to -32 .. 31.
struct ScaleFit {
  float scale, inverse;
};

// The fit of 16 elements. The roundings that are tried: those of -(32 + 0.1 i) / extreme for i = 0
// and -9 .. 9, in this order.
TANDEM_HOST_DEVICE inline ScaleFit FitScale(const float* x) {
  float largest = 0.0f, extreme = 0.0f;
  TANDEM_KEEP_LOOP
  for (int i = 0; i < kQ6SubBlock; ++i) {
    if (fabsf(x[i]) > largest) {
      largest = fabsf(x[i]);
      extreme = x[i];
    }
  }
  if (largest < kZeroBelow) return {0.0f, 0.0f};
  struct Sums {
    float xq, qq;
  };
  const auto sums = [&](float inverse) {
    Sums sum = {0.0f, 0.0f};
    TANDEM_KEEP_LOOP
    for (int i = 0; i < kQ6SubBlock; ++i) {
      const auto q = static_cast<float>(ClampInteger(NearestInteger(inverse * x[i]), -32, 31));
      const float weight = x[i] * x[i];
      sum.xq += weight * x[i] * q;
      sum.qq += weight * q * q;
    }
    return sum;
  };
  ScaleFit fit = {0.0f, -32.0f / extreme};
  Sums sum = sums(fit.inverse);
  if (sum.qq != 0.0f) fit.scale = sum.xq / sum.qq;
  float best = fit.scale * sum.xq;
  TANDEM_KEEP_LOOP
  for (int trial = -9; trial <= 9; ++trial) {
    if (trial == 0) continue;
    const float inverse = -(32.0f + 0.1f * static_cast<float>(trial)) / extreme;
    sum = sums(inverse);
    if (sum.qq > 0.0f && sum.xq * sum.xq > best * sum.qq) {
      fit = {sum.xq / sum.qq, inverse};
      best = fit.scale * sum.xq;
    }
  }
  return fit;
}

}  // namespace tandem

#undef TANDEM_KEEP_LOOP
