// A warp's work on one tile of keys in prefill attention: products by mma.sync, softmax in
// registers. Fragments: cuda/device/matrix.h. The accumulator of q k is, rounded, the left operand
// of the product with v (Dao 2023), so probabilities never leave registers.
#pragma once

#include "cuda/device/matrix.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention_prefill_load.h"
#include "cuda/kernels/attention_scores.h"
#include "cuda/kernels/attention_weights.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// kTerms = 2: queries and weights are the sums of two 16-bit numbers, keys and values integers that
// have scales.
template <typename T, int kDim, int kRowTiles, int kKeys, int kTerms = 1>
struct PrefillWarp {
  static constexpr int kTiles = kRowTiles;
  static constexpr int kKeySteps = kKeys / 16;
  static constexpr int kColumnSteps = kDim / 16;
  static_assert(kKeys <= 64);

  // Row 2 t + h of a thread is row 16 t + 8 h + lane / 4 of the warp.
  float out[kRowTiles][2 * kColumnSteps][4];
  float max[2 * kRowTiles];
  float sum[2 * kRowTiles];  // of this thread's columns
  // Scores, then probabilities, of the current tile.
  float s[kRowTiles][2 * kKeySteps][4];
  int exponent = -100;  // of kTerms = 2: out is in units of 2^(exponent - 14)

  __device__ void Clear() {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < 2 * kColumnSteps; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[t][n][i] = 0.0f;
      }
    }
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      max[r] = kNegInf;
      sum[r] = 0.0f;
    }
  }

  // s = q k. q: of the warp's first row, which is a multiple of 16; a second term lies term_stride
  // elements behind it.
  __device__ void Products(const uint16_t* q, const uint16_t* k, int term_stride) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int n = 0; n < 2 * kKeySteps; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[t][n][i] = 0.0f;
      }
    }
    const int lane = LaneId();
    // The swizzle depends on the row modulo 8 alone.
    const int q_chunk = PrefillSwizzle<kDim>(lane % 8, lane / 16);
    const int k_chunk = PrefillSwizzle<kDim>(lane % 8, lane / 8 % 2);
    q += lane % 16 * kDim;
    k += (lane / 16 * 8 + lane % 8) * kDim;
#pragma unroll
    for (int step = 0; step < kColumnSteps; ++step) {
      uint32_t a[kTerms * kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kTerms * kRowTiles; ++t) {
        LoadMatrices(
            a[t], q + t / kRowTiles * term_stride + t % kRowTiles * 16 * kDim + At(step, q_chunk));
      }
#pragma unroll
      for (int n = 0; n < kKeySteps; ++n) {
        uint32_t b[4];
        LoadMatrices(b, k + n * 16 * kDim + At(step, k_chunk));
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
        for (int t = 0; t < kTerms * kRowTiles; ++t) {
          MultiplyAccumulate16x8x16<T>(s[t % kRowTiles][2 * n], a[t], low);
          MultiplyAccumulate16x8x16<T>(s[t % kRowTiles][2 * n + 1], a[t], high);
        }
      }
    }
  }

  // Calls fn(t, h, n, e, key) for every score of the thread; key: within the tile.
  template <typename Fn>
  __device__ static void ForEach(Fn&& fn) {
    const int pair = LaneId() % 4 * 2;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 2 * kKeySteps; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) fn(t, h, n, e, n * 8 + pair + e);
        }
      }
    }
  }

  // Softmax of the scores, hidden ones being -inf: s becomes probabilities, relative to max. Times
  // factor, scores are in units of log 2.
  __device__ void Softmax(const float (&factor)[2 * kRowTiles]) {
    float tile[2 * kRowTiles];
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      float most = kNegInf;
#pragma unroll
      for (int n = 0; n < 2 * kKeySteps; ++n) {
        most = fmaxf(most, fmaxf(s[r / 2][n][r % 2 * 2], s[r / 2][n][r % 2 * 2 + 1]));
      }
      most = fmaxf(most, ShuffleXor(most, 1));
      most = fmaxf(most, ShuffleXor(most, 2));
      tile[r] = fmaxf(max[r], most);
      grows = grows || tile[r] > max[r];
    }
    // The longer the sequence, the more tiles hold no row's maximum.
    if (Any(grows)) {
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        const float scale = max[r] == tile[r] ? 1.0f : Exp2Fast((max[r] - tile[r]) * factor[r]);
        max[r] = tile[r];
        sum[r] *= scale;
#pragma unroll
        for (int n = 0; n < 2 * kColumnSteps; ++n) {
          out[r / 2][n][r % 2 * 2] *= scale;
          out[r / 2][n][r % 2 * 2 + 1] *= scale;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2 * kRowTiles; ++r) {
      // The difference is exact for the scores that count, and 0 for the largest, whose probability
      // is then 1 whatever the range of scores. (One fused operation, x * factor - max * factor,
      // would be off by a rounding of the product, and the 16 bits of the probability with it.)
      const float base = max[r] == kNegInf ? 0.0f : max[r];  // nothing seen yet: all are -inf
#pragma unroll
      for (int n = 0; n < 2 * kKeySteps; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[r / 2][n][r % 2 * 2 + e];
          x = Exp2Fast((x - base) * factor[r]);
          sum[r] += x;
        }
      }
    }
  }

  // Products with integers become those with keys. `scales`: of the tile.
  __device__ void ScaleScores(const float* scales) {
    ForEach([&](int t, int h, int n, int e, int key) { s[t][n][2 * h + e] *= scales[key]; });
  }

  // Probabilities become weights of integer values, in units of 2^(exponent - 14), so that they lie
  // within f16; those of keys that are not visible(t, h, n, e) 0, whatever their scales are.
  template <typename Visible>
  __device__ void ScaleWeights(const float* scales, Visible visible) {
    float largest = 0.0f;
    ForEach([&](int t, int h, int n, int e, int key) {
      const float magnitude = Abs(scales[key]);
      if (visible(t, h, n, e) && IsFinite(magnitude) && magnitude > largest) largest = magnitude;
    });
    largest = WarpMax(largest);
    int most = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23) - 127;
    most = most < -100 ? -100 : most > 110 ? 110 : most;
    if (most > exponent) {
      const float shrink = most - exponent > 126 ? 0.0f : PowerOfTwo(exponent - most);
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
        for (int n = 0; n < 2 * kColumnSteps; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[t][n][i] *= shrink;
        }
      }
      exponent = most;
    }
    const float unit = PowerOfTwo(14 - exponent);
    ForEach([&](int t, int h, int n, int e, int key) {
      float& x = s[t][n][2 * h + e];
      x = visible(t, h, n, e) ? x * (scales[key] * unit) : 0.0f;
    });
  }

  // out += s v. kFiniteOnly: as if all that is not finite in v were 0.
  template <bool kFiniteOnly = false>
  __device__ void Accumulate(const uint16_t* v) {
    const int lane = LaneId();
    const int v_chunk = PrefillSwizzle<kDim>(lane % 8, lane / 16);
    v += lane % 16 * kDim;
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
      uint32_t a[kTerms * kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float(&x)[4] = s[t][2 * step + i / 2];
          a[t][i] = RoundPair<T>(x[i % 2 * 2], x[i % 2 * 2 + 1]);
          if constexpr (kTerms == 2) {
            const FloatPair taken = UnpackF16(a[t][i]);
            a[kRowTiles + t][i] =
                RoundPair<T>(x[i % 2 * 2] - taken.low, x[i % 2 * 2 + 1] - taken.high);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kColumnSteps; ++n) {
        uint32_t b[4];
        LoadMatrices<4, true>(b, v + step * 16 * kDim + At(n, v_chunk));
        if constexpr (kFiniteOnly) {
#pragma unroll
          for (uint32_t& pair : b) pair = FiniteOnly(pair);
        }
        const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
#pragma unroll
        for (int t = 0; t < kTerms * kRowTiles; ++t) {
          MultiplyAccumulate16x8x16<T>(out[t % kRowTiles][2 * n], a[t], low);
          MultiplyAccumulate16x8x16<T>(out[t % kRowTiles][2 * n + 1], a[t], high);
        }
      }
    }
  }

  // Does the tile of values hold a NaN or an infinity?
  __device__ static bool HoldsNonFinite(const uint16_t* v) {
    bool found = false;
#pragma unroll 1
    for (int i = LaneId() * 8; i < kKeys * kDim; i += 32 * 8) {
      const Packed<16> words = LoadPacked<16>(v + i);
#pragma unroll
      for (const uint32_t pair : words.words) found = found || AnyNonFinite<T>(pair);
    }
    return Any(found);
  }

  // The same where some of the values are not finite and some keys are hidden from some rows, whose
  // weight 0 would make a NaN of them: first the finite values, then, key by key, what is not
  // finite, for the rows that see it: row_sees(r, key) of the thread's rows.
  template <typename RowSees>
  __device__ void AccumulateSpecial(const uint16_t* v, RowSees row_sees) {
    Accumulate<true>(v);
    const int lane = LaneId();
#pragma unroll 1
    for (int key = 0; key < kKeys; ++key) {
      bool sees[2 * kRowTiles];
      bool any = false;
#pragma unroll
      for (int r = 0; r < 2 * kRowTiles; ++r) {
        sees[r] = row_sees(r, key);
        any = any || sees[r];
      }
      if (!Any(any)) continue;
#pragma unroll
      for (int n = 0; n < 2 * kColumnSteps; ++n) {
        const uint32_t pair = LoadPacked<4>(PrefillChunk<kDim>(v, key, n) + lane % 4 * 2).words[0];
        if (!AnyNonFinite<T>(pair)) continue;
        const FloatPair x = std::is_same_v<T, F16> ? UnpackF16(pair) : UnpackBF16(pair);
#pragma unroll
        for (int r = 0; r < 2 * kRowTiles; ++r) {
          if (sees[r] && !IsFinite(x.low)) out[r / 2][n][r % 2 * 2] += x.low;
          if (sees[r] && !IsFinite(x.high)) out[r / 2][n][r % 2 * 2 + 1] += x.high;
        }
      }
    }
  }

 private:
  // Offset of chunk 2 step + c of a row, in elements; swizzled: where chunk c <= 1 lies. Written so
  // that only few of the offsets are no constants.
  __device__ static int At(int step, int swizzled) {
    constexpr int kPeriod = kDim % 64 == 0 ? 4 : 2;
    return step / kPeriod * kPeriod * 16 + (2 * (step % kPeriod) ^ swizzled) * 8;
  }
  __device__ static uint32_t FiniteOnly(uint32_t pair) {
    constexpr uint32_t kExponent = std::is_same_v<T, F16> ? 0x7C00u : 0x7F80u;
    if ((pair & kExponent) == kExponent) pair &= 0xFFFF0000u;
    if ((pair >> 16 & kExponent) == kExponent) pair &= 0x0000FFFFu;
    return pair;
  }
};

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
