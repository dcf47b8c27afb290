// What the consumers of the kernel `hopper` do with queries and scores, in the layout of wgmma's
// accumulators: thread t of a warpgroup has, of rows t / 32 * 16 + t % 32 / 4 and 8 further,
// columns 8 j + t % 4 * 2 + i in d[4 j + 2 r + i]. Of attention_hopper_kernel.h.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/device/chunk.h"
#include "cuda/device/math.h"
#include "cuda/device/matrix.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention_hopper_ring.h"
#include "cuda/kernels/attention_scores.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace hopper {

// What a thread knows of its two rows of the tile: r = 0 and 1 for accumulators d[4 j + 2 r + i].
struct Rows {
  const HopperRow* at;  // row r: at[8 r]
  float factor[2];      // exponent = factor * score
  float max[2];         // of the scores
  float sum[2];         // of this thread's columns
};

// The query's rows, 64 of one consumer, to shared memory as T. Rows of another type than T = F16
// are scaled by a power of two first, so that nothing overflows.
template <typename T, int kDim>
__device__ inline void LoadQueries(const AttentionParams& p, const HopperWork& w, int group,
                                   uint16_t* tile, HopperRow* rows) {
  constexpr DType kType = std::is_same_v<T, F16> ? DType::kF16 : DType::kBF16;
  constexpr int kUnits = kDim / 8, kRowsAtOnce = kGroup / kUnits;
  const int t = static_cast<int>(threadIdx.x) % kGroup, unit = t % kUnits;
  const int64_t base = w.sequence.q_batch * p.q.strides[0] + w.head * p.q.strides[1] +
                       (w.sequence.q_begin + w.first_query) * p.q.strides[2] + unit * 8;
#pragma unroll 2
  for (int pass = 0; pass < kGroupRows / kRowsAtOnce; ++pass) {
    const int row = pass * kRowsAtOnce + t / kUnits;
    const int64_t in_tile = group * kGroupRows + row;
    Packed<16> words = {};
    float factor = 1.0f;
    RawChunk raw = {};
    const bool real = in_tile < w.rows;
    if (real) {
      const int64_t at = base + in_tile * p.q.strides[2];
      raw = LoadRawChunk(p.q, at, {0, 4});
    }
    if (p.q.dtype == kType) {
      words = raw.first;
    } else {
      Chunk chunk = ToFloats(raw, p.q.dtype);
      if (std::is_same_v<T, F16>) {
        float most = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float x = Abs(chunk.x[i]);
          if (x < HUGE_VALF && x > most) most = x;
        }
#pragma unroll
        for (int other = kUnits / 2; other > 0; other /= 2) {
          const float theirs = ShuffleXor(most, other);
          most = theirs > most ? theirs : most;
        }
        // 2^(14 - e) for most = 2^e * 1.xxx, within what f32 can hold.
        const int exponent = static_cast<int>(std::bit_cast<uint32_t>(most) >> 23) - 127;
        const int shift = most == 0.0f ? 0 : exponent < -100 ? 114 : 14 - exponent;
        const float scale = std::bit_cast<float>(static_cast<uint32_t>(127 + shift) << 23);
        factor = std::bit_cast<float>(static_cast<uint32_t>(127 - shift) << 23);
#pragma unroll
        for (int i = 0; i < 8; ++i) chunk.x[i] *= scale;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words.words[i] = RoundPair<T>(chunk.x[2 * i], chunk.x[2 * i + 1]);
      }
    }
    StorePacked(reinterpret_cast<char*>(tile) + UnitOffset(kGroupRows, row, unit), words);
    if (unit == 0) rows[row].q_factor = factor;
  }
}

// Exponents beyond this are not taken from one fused operation, for the largest would no longer be
// 0, and its weight not 1, by more than 2^-17.
inline constexpr float kFar = 256.0f;

template <typename T, int kKeys>
struct Scores {
  // Hides what the rule hides of a tile whose first key is `key`, and pieces that lie nowhere.
  __device__ static void Mask(float (&s)[kKeys / 2], const Rows& rows, int key, uint32_t missing,
                              int piece) {
    const int column = key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int first = rows.at[8 * r].first;
      const auto low = static_cast<uint32_t>(first - column);
      const auto width = static_cast<uint32_t>(rows.at[8 * r].last - first);
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[4 * j + 2 * r + i];
          x = static_cast<uint32_t>(8 * j + i) - low < width ? x : kNegInf;
        }
      }
    }
    if (missing != 0) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
        if ((missing >> (8 * j / piece) & 1u) == 0) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) s[4 * j + i] = kNegInf;
      }
    }
  }

  // Soft cap and ALiBi; what is hidden is hidden afterwards.
  __device__ static void ApplyVariants(const AttentionParams& p, float (&s)[kKeys / 2],
                                       const Rows& rows, int64_t head, int key) {
    const int column = key + static_cast<int>(threadIdx.x) % 4 * 2;
    const float slope = SlopeOf(p, head);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float scale = p.scale * rows.at[8 * r].q_factor;
      const int position = rows.at[8 * r].position - column;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[4 * j + 2 * r + i];
          float score = scale * x;
          if (p.softcap > 0.0f) score = p.softcap * Tanh(score * p.inverse_softcap);
          const int distance = position - (8 * j + i);
          score -= slope * static_cast<float>(distance < 0 ? -distance : distance);
          x = score * kLog2E;
        }
      }
    }
  }

  // Scores become exponentials of their distance to the row's maximum so far; `shrink`: what is in
  // the accumulators is to be multiplied with it.
  __device__ static void Softmax(float (&s)[kKeys / 2], Rows& rows, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most[2] = {kNegInf, kNegInf};
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) most[i] = fmaxf(most[i], s[4 * j + 2 * r + i]);
      }
      float max = fmaxf(most[0], most[1]);
      max = fmaxf(max, ShuffleXor(max, 1));
      max = fmaxf(max, ShuffleXor(max, 2));
      max = fmaxf(rows.max[r], max);
      const float most_finite = max == kNegInf ? 0.0f : max;
      float base = most_finite * rows.factor[r];
      float less = rows.max[r] * rows.factor[r] - base;
      if (Abs(base) > kFar) {
        less = (rows.max[r] - most_finite) * rows.factor[r];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) s[4 * j + 2 * r + i] -= most_finite;
        }
        base = 0.0f;
      }
      shrink[r] = Exp2Fast(less);
      rows.max[r] = max;
      float sums[2] = {};
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[4 * j + 2 * r + i];
          x = Exp2Fast(MultiplyAdd(x, rows.factor[r], -base));
          sums[i] += x;
        }
      }
      rows.sum[r] = MultiplyAdd(rows.sum[r], shrink[r], sums[0] + sums[1]);
    }
  }
  __device__ static void Round(const float (&s)[kKeys / 2], uint32_t (&p)[kKeys / 16][4]) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
      for (int x = 0; x < 4; ++x) p[i][x] = RoundPair<T>(s[8 * i + 2 * x], s[8 * i + 2 * x + 1]);
    }
  }
};

}  // namespace hopper
}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
