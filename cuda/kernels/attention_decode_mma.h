// Decode attention on tensor cores: caches of 16-bit floats and int8. Split keys as in
// flash-decoding (Dao et al. 2023); the queries as the small dimension of the matrix instruction.
//
// One block per sequence, key/value head and split of its keys (attention_decode_block.h), which
// reads K and V once for all query heads of the group and all query tokens: 8 of them ("columns")
// are the n of mma.m16n8k16. Of 4 * column_warps warps, four share the 64 keys of a tile, 16 each,
// and each of these has kGroups * 8 columns:
//
//   S^T [16 keys, 8 columns] = K [16, D] Q^T [D, 8]
//     K by ldmatrix, Q too, from shared memory
//   P^T = exp2((S^T - max) * factor)
//     each warp has its own maxima and sums
//   O^T [Dv, 8 columns] += V^T [Dv, 16 keys] P^T [16, 8]
//     V by transposed ldmatrix, P by shuffles
//
// At the end the four warps' results are merged, in a fixed order. No warp waits for another but at
// the two barriers per tile that the ring of copies needs (attention_decode_ring.h).
//
// Precision. Scores, maxima, sums, O: f32. P is rounded to the cache's 16-bit type, the sums are of
// the unrounded. q of another type than the cache is the sum of two 16-bit numbers, for f16 after
// multiplication with a power of two per row, which the factor of the scores takes back. int8 keys
// and values become f16, exactly, when they are read from shared memory; the scale of a key
// multiplies the score, that of a value P, which then is the sum of two f16 relative to a power of
// two near the largest scale so far: errors are those of f32 but for 2^-22.
//
// What is hidden. Rows that no column sees are zeros, hidden scores -inf. P of a hidden key is -0,
// which tells it from one that is too small: where a tile has hidden keys, values that are not
// finite are taken out of it and only given to the columns that see them.
//
// Traffic: K and V once from memory, and once more from the second-level cache for every further
// block that the columns need (more than 32, or 16 with values of more than 128 elements); parts of
// the result once through that cache.
#pragma once

#include "cuda/device/convert.h"
#include "cuda/device/matrix.h"
#include "cuda/kernels/attention_decode_block.h"
#include "cuda/kernels/attention_decode_fragments.h"
#include "cuda/kernels/attention_decode_queries.h"
#include "cuda/kernels/attention_decode_ring.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// One warp of a block while it goes through its keys.
template <typename Stored, int kGroups, int kValueTiles, typename Scores>
struct DecodeWarp : DecodeFragments<Stored> {
  using Fragments = DecodeFragments<Stored>;
  using Operand = typename Fragments::Operand;
  using Fragments::key_warp;
  using Fragments::KeyOf;
  using Fragments::kScaled;
  using Fragments::lane;
  using Fragments::LoadKeys;
  using Fragments::LoadValues;
  using Fragments::p;
  using Fragments::Transpose;
  using Fragments::ValueOf;
  static constexpr int kTile = static_cast<int>(kDecodeTile);

  const DecodeShared& shared;
  int column;  // first of this warp's
  float max[kGroups][2], sum[kGroups][2];
  float acc[kValueTiles][kGroups][4];
  int exponent;  // of int8: acc is in units of 2^(exponent - 14)

  __device__ DecodeWarp(const DecodeParams& params, const DecodeShared& s)
      : Fragments{params, LaneId(), WarpId() % kDecodeKeyWarps}, shared(s) {
    column = WarpId() / kDecodeKeyWarps * kGroups * 8;
    exponent = -100;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        max[g][i] = kNegInf;
        sum[g][i] = 0.0f;
      }
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[t][g][i] = 0.0f;
      }
    }
  }

  __device__ int ColumnOf(int g, int i) const { return column + g * 8 + lane % 4 * 2 + i % 2; }

  // Products of the tile's keys and q.
  __device__ void MultiplyKeys(float (&s)[kGroups][4], const char* keys) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[g][i] = 0.0f;
    }
    const int steps = (static_cast<int>(p.attention.q.dims[3]) + 15) / 16;
    const int term_bytes = p.layout.columns * p.layout.q_stride;
    // Lanes 0-7 name the rows of the first matrix (elements 0..7 of a step), 8-15 of the second;
    // the next 16 those of the next 8 columns.
    constexpr int kLoad = kGroups == 1 ? 1 : 2;  // groups
    const char* queries =
        shared.q + (column + lane % 8 + (kLoad == 2 ? lane / 16 * 8 : 0)) * p.layout.q_stride +
        lane / 8 % 2 * 16;
#pragma unroll 2
    for (int step = 0; step < steps; ++step) {
      uint32_t a[4];
      LoadKeys(a, keys, step);
      for (int term = 0; term < p.q_terms; ++term) {
#pragma unroll
        for (int first = 0; first < kGroups; first += kLoad) {
          uint32_t b[kLoad * 2];
          LoadMatrices<kLoad * 2>(
              b, queries + first * 8 * p.layout.q_stride + term * term_bytes + step * 32);
#pragma unroll
          for (int g = 0; g < kLoad; ++g) {
            MultiplyAccumulate16x8x16<Operand>(s[first + g], a, {b[g * 2], b[g * 2 + 1]});
          }
        }
      }
    }
  }

  // Products become scores, those of hidden keys -inf. `base`: the tile's first key; `end`: of the
  // cache.
  __device__ void MaskScores(float (&s)[kGroups][4], int base, int end,
                             const uint8_t* flags) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = ColumnOf(g, i), key = KeyOf(i), j = base + key;
        bool visible = j >= shared.begin[c] && j < shared.end[c] && j < end;
        if (p.attention.paged) visible = visible && flags[key] != 0;
        float score = s[g][i];
        if constexpr (Scores::kVariants) {
          // Without a branch: of a key that is not visible what is read is of key 0.
          const auto& row = DecodeRow<Scores>(shared, c);
          const int at = visible ? j : 0;
          visible = visible && Scores::Shows(p.attention, row, at);
          score = Scores::Score(p.attention, row, score, at);
        }
        s[g][i] = visible ? score : kNegInf;
      }
    }
  }

  // Scores become weights; acc and sums are brought to the new maxima.
  __device__ void Weigh(float (&s)[kGroups][4], const float* scales, bool masked) {
    float rescale[kGroups][2];
    bool changes = false;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float factor = Scores::Factor(DecodeRow<Scores>(shared, ColumnOf(g, i)));
        float m = max[g][i];  // a NaN is never larger
        m = s[g][i] > m ? s[g][i] : m;
        m = s[g][i + 2] > m ? s[g][i + 2] : m;
#pragma unroll
        for (int step = 4; step < kWarpSize; step *= 2) {
          const float other = ShuffleXor(m, step);
          m = other > m ? other : m;
        }
        rescale[g][i] = DecodeWeight(max[g][i], m, factor);
        changes = changes || m != max[g][i];
        max[g][i] = m;
#pragma unroll
        for (int k = i; k < 4; k += 2) {
          const float w = DecodeWeight(s[g][k], m, factor);
          s[g][k] = masked && s[g][k] == kNegInf ? -0.0f : w;
        }
        sum[g][i] = sum[g][i] * rescale[g][i] + (s[g][i] + s[g][i + 2]);
      }
    }
    if constexpr (kScaled) changes = ScaleWeights(s, scales, rescale) || changes;
    if (!Any(changes)) return;
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[t][g][i] *= rescale[g][i % 2];
      }
    }
  }

  // Weights times the scales of their values, in units of 2^(exponent - 14).
  __device__ bool ScaleWeights(float (&s)[kGroups][4], const float* scales,
                               float (&rescale)[kGroups][2]) {
    const float scale[2] = {scales[KeyOf(0)], scales[KeyOf(2)]};
    float largest = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      bool used = false;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        used = used || !IsHiddenWeight(s[g][2 * h]) || !IsHiddenWeight(s[g][2 * h + 1]);
      }
      const float magnitude = Abs(scale[h]);
      if (used && IsFinite(magnitude) && magnitude > largest) largest = magnitude;
    }
    largest = WarpMax(largest);
    int e = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23) - 127;
    e = e < -100 ? -100 : e > 110 ? 110 : e;
    const bool grows = e > exponent;
    if (grows) {
      const float shrink = e - exponent > 126 ? 0.0f : PowerOfTwo(exponent - e);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        rescale[g][0] *= shrink;
        rescale[g][1] *= shrink;
      }
      exponent = e;
    }
    const float unit = PowerOfTwo(14 - exponent);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[g][i] = IsHiddenWeight(s[g][i]) ? -0.0f : s[g][i] * (scale[i / 2] * unit);
      }
    }
    return grows;
  }

  static constexpr int kTerms = kScaled ? 2 : 1;  // 16-bit numbers that a weight is the sum of
  using Weights = uint32_t[kTerms][kGroups][2];

  __device__ void PackWeights(const float (&s)[kGroups][4], Weights& w) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float low = s[g][2 * h], high = s[g][2 * h + 1];
        const uint32_t rounded = RoundPair<Operand>(low, high);
        w[0][g][h] = Transpose(rounded);
        if constexpr (kTerms == 2) {
          const FloatPair taken = UnpackF16(rounded);
          w[1][g][h] = Transpose(RoundPair<Operand>(low - taken.low, high - taken.high));
        }
      }
    }
  }

  __device__ bool HidesAny(const float (&s)[kGroups][4]) const {
    bool hidden = false;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) hidden = hidden || IsHiddenWeight(s[g][i]);
    }
    return Any(hidden);
  }

  // acc += V^T P^T where some of V is not finite and some keys are hidden from some columns: column
  // by column, without the keys that it does not see. Rare.
  __device__ void MultiplyVisibleValues(const char* values, const float (&s)[kGroups][4],
                                        const Weights& w) {
    const int tiles = (static_cast<int>(p.attention.out.dims[3]) + 15) / 16;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      uint32_t visible[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t low = IsHiddenWeight(s[g][2 * h]) ? 0 : 0xFFFFu;
        const uint32_t high = IsHiddenWeight(s[g][2 * h + 1]) ? 0 : 0xFFFF0000u;
        visible[h] = Transpose(low | high);  // column lane / 4, keys lane % 4 * 2 ..
      }
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        // To the lanes of all rows; the keys are in the same place.
        const uint32_t first = Shuffle(visible[0], c * 4 + lane % 4);
        const uint32_t second = Shuffle(visible[1], c * 4 + lane % 4);
#pragma unroll
        for (int t = 0; t < kValueTiles; ++t) {
          uint32_t a[4];
          LoadValues(a, values, t < tiles ? t : 0);  // those behind are not used
          float sums[4] = {};
          MultiplyAccumulate16x8x16<Operand>(
              sums, {a[0] & first, a[1] & first, a[2] & second, a[3] & second}, w[0][g]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            acc[t][g][i] += lane % 4 * 2 + i % 2 == c ? sums[i] : 0.0f;
          }
        }
      }
    }
  }

  // acc += V^T P^T.
  __device__ void MultiplyValues(const char* values, const Weights& w) {
    const int tiles = (static_cast<int>(p.attention.out.dims[3]) + 15) / 16;
    constexpr int kStep = kScaled ? 2 : 1;
#pragma unroll
    for (int t = 0; t < kValueTiles; t += kStep) {
      if (t >= tiles) break;
      uint32_t a[4 * kStep];
      LoadValues(a, values, t);
#pragma unroll
      for (int half = 0; half < kStep; ++half) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int term = 0; term < kTerms; ++term) {
            MultiplyAccumulate16x8x16<Operand>(
                acc[t + half][g], {a[half * 4], a[half * 4 + 1], a[half * 4 + 2], a[half * 4 + 3]},
                w[term][g]);
          }
        }
      }
    }
  }

  // The keys of all tiles of a block.
  __device__ void Run(const DecodeBlock& block, DecodeRing<Stored>& ring) {
    for (int tile = block.first_tile; tile < block.end_tile; ++tile) {
      const int base = block.begin + tile * kTile;
      float s[kGroups][4];
      bool masked = Scores::kVariants || base < block.all_begin || base + kTile > block.all_end ||
                    base + kTile > block.cache_len;
      {
        const auto slot = ring.Next();
        MultiplyKeys(s, slot.data);
        if constexpr (kScaled) {
          const float scale[2] = {slot.scales[KeyOf(0)], slot.scales[KeyOf(2)]};
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[g][i] *= scale[i / 2];
          }
        }
        if (p.attention.paged) {
          masked = masked || !All(slot.flags[KeyOf(0)] != 0 && slot.flags[KeyOf(2)] != 0);
        }
        if (masked) MaskScores(s, base, block.cache_len, slot.flags);
      }
      const auto slot = ring.Next();
      Weigh(s, slot.scales, masked);
      Weights w;
      PackWeights(s, w);
      if constexpr (!kScaled) {
        if (masked && HidesAny(s) && Fragments::AnyValueNonFinite(slot.data)) {
          MultiplyVisibleValues(slot.data, s, w);
          continue;
        }
      }
      MultiplyValues(slot.data, w);
    }
  }

  // Merges the results of the warps that shared the keys; the ring's memory is free. Afterwards
  // shared.max, shared.sum and `values` hold the block's. All threads call it.
  __device__ void Merge(float* values) {
    const int columns = p.layout.columns, stride = p.layout.result_stride;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int step = 4; step < kWarpSize; step *= 2) sum[g][i] += ShuffleXor(sum[g][i], step);
        if (lane >= 4) continue;
        const int at = key_warp * columns + ColumnOf(g, i);
        shared.warp_max[at] = max[g][i];
        shared.warp_sum[at] = sum[g][i];
      }
    }
    SyncThreads();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = ColumnOf(g, i);
        const float factor = Scores::Factor(DecodeRow<Scores>(shared, c));
        float m = kNegInf, total = 0.0f;
        for (int k = 0; k < kDecodeKeyWarps; ++k) {
          const float other = shared.warp_max[k * columns + c];
          m = other > m ? other : m;
        }
        for (int k = 0; k < kDecodeKeyWarps; ++k) {
          total += shared.warp_sum[k * columns + c] *
                   DecodeWeight(shared.warp_max[k * columns + c], m, factor);
        }
        float own = DecodeWeight(max[g][i], m, factor);
        if constexpr (kScaled) own *= PowerOfTwo(exponent - 14);
#pragma unroll
        for (int t = 0; t < kValueTiles; ++t) {
          acc[t][g][i] *= own;
          acc[t][g][i + 2] *= own;
        }
        if (key_warp == 0 && lane < 4) {
          shared.max[c] = m;
          shared.sum[c] = total;
        }
      }
    }
    // Warps 2 and 3 give theirs to 0 and 1, then 1 to 0.
    const auto each = [&](int buffer, const auto& use) {
      float* to = values + buffer * columns * stride;
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
        if ((kScaled ? t / 2 * 32 : t * 16) >= static_cast<int>(p.attention.out.dims[3])) break;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            use(to[ColumnOf(g, i) * stride + ValueOf(t, i)], acc[t][g][i]);
          }
        }
      }
    };
    const auto store = [](float& to, float own) { to = own; };
    const auto add = [](float& from, float& own) { own += from; };
    if (key_warp >= 2) each(key_warp - 2, store);
    SyncThreads();
    if (key_warp < 2) each(key_warp, add);
    if (key_warp == 1) each(1, store);
    SyncThreads();
    if (key_warp == 0) {
      each(1, add);
      each(0, store);
    }
    SyncThreads();
  }
};

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
