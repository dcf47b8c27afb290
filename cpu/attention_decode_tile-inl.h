// One tile of decode attention: up to kTileKeys keys against a block of up to 8 query rows of one
// key/value head. Compiled once per target; the algorithm is described in attention_decode.cc.
//
// Both products keep kAcc (or so) accumulators in registers:
//   scores  vectors along D. RT rows x KT = kAcc / RT keys; each loaded (and widened) piece of K is
//           used for all RT rows. The kAcc vectors are then summed across their lanes by a tree of
//           interleaves and adds, which leaves kAcc scores in one vector: about 3 instructions per
//           score instead of the 8 of separate horizontal sums.
//   values  vectors along Dv. RT rows x NV vectors; each piece of V is used for all RT rows.
// Scores lie as [key][row], so that softmax and the broadcasts of the second product read
// contiguous memory, and no lane is idle when there are few rows.
#if defined(TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_
#endif

#include <cstdint>

#include "core/ops/online_softmax.h"
#include "cpu/attention_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Scores per group: one vector of them, or four vectors of one lane.
inline constexpr int kAcc = kLanes < 4 ? 4 : kLanes;
inline constexpr int kVecs = kAcc / kLanes;
inline constexpr int kMaxBlockRows = kAcc < 8 ? kAcc : 8;
inline constexpr int64_t kTileKeys = 128;  // at most
inline constexpr int64_t kScoreFloats = kTileKeys * kMaxBlockRows + kAcc;

// The query rows of one block and what has been computed for them. Lane l of a group of kAcc values
// belongs to row l % RT.
struct RowBlock {
  int rows = 0;       // real ones; the other rows of the block are zero and ignored
  int first_row = 0;  // index of the first among the rows of the kv head
  const float* q;     // [ceil(D / kLanes)][RT][kLanes]
  float* acc;         // [RT][acc_stride]
  float* max;         // [kAcc], equal for all lanes of a row
  float* sum;         // [kAcc], to be added up over the lanes of a row
};

template <typename T>
struct KeyTile {
  const T* k;
  const T* v;
  int64_t k_stride, v_stride;  // elements
  int64_t keys;                // 1..kTileKeys
  int64_t prefetch_keys;       // keys that follow this tile and will be needed next
};

struct TileShape {
  int64_t head_dim, v_head_dim, acc_stride;
  float scale;
};

// out[i] = scale * (sum of the lanes of acc[i]); returns the same as vectors.
HWY_INLINE void SumLanes(VF (&acc)[kAcc], VF scale, float* HWY_RESTRICT out, VF (&sums)[kVecs]) {
  const DF d;
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < kAcc; ++i) {
    sums[i] = hn::Mul(acc[i], scale);
    hn::StoreU(sums[i], d, out + i);
  }
#else
  const hn::Repartition<double, DF> dd;
  // Within 128-bit blocks: 4 vectors become one with their 4 block sums in order.
  VF quad[kAcc / 4];
  TANDEM_UNROLL
  for (int i = 0; i < kAcc / 4; ++i) {
    const VF a = acc[4 * i], b = acc[4 * i + 1], c = acc[4 * i + 2], e = acc[4 * i + 3];
    const auto ab =
        hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
    const auto ce =
        hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
    quad[i] = hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, ab, ce)),
                      hn::BitCast(d, hn::InterleaveUpper(dd, ab, ce)));
  }
  VF total;
#if HWY_TARGET == HWY_AVX3
  // Across the four blocks: neighbours first, then halves.
  const VF x = hn::Add(hn::OddEvenBlocks(quad[1], quad[0]),
                       hn::SwapAdjacentBlocks(hn::OddEvenBlocks(quad[0], quad[1])));
  const VF y = hn::Add(hn::OddEvenBlocks(quad[3], quad[2]),
                       hn::SwapAdjacentBlocks(hn::OddEvenBlocks(quad[2], quad[3])));
  total = hn::Add(hn::ConcatLowerLower(d, y, x), hn::ConcatUpperUpper(d, y, x));
#elif HWY_TARGET == HWY_AVX2
  total =
      hn::Add(hn::ConcatLowerLower(d, quad[1], quad[0]), hn::ConcatUpperUpper(d, quad[1], quad[0]));
#else
  total = quad[0];
#endif
  sums[0] = hn::Mul(total, scale);
  hn::StoreU(sums[0], d, out);
#endif
}

// Prefetches `bytes` from p on into the first-level cache.
HWY_INLINE void PrefetchBytes(const void* p, int64_t bytes) {
  const char* c = static_cast<const char*>(p);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(c + i, 0, 3);
}

// scores[key][row] = scale * q[row] . k[key] for keys 0..keys-1, and their maxima lane by lane.
template <typename T, int RT>
HWY_INLINE void Scores(const KeyTile<T>& tile, const TileShape& shape, const float* HWY_RESTRICT q,
                       float* HWY_RESTRICT scores, VF (&max)[kVecs]) {
  constexpr int KT = kAcc / RT;
  const DF d;
  const VF scale = hn::Set(d, shape.scale);
  const int64_t full = shape.head_dim / kLanes;
  const int tail = static_cast<int>(shape.head_dim % kLanes);
  const int64_t v_bytes = shape.v_head_dim * static_cast<int64_t>(sizeof(T));
  for (int64_t key = 0; key < tile.keys; key += KT) {
    // The last group overlaps the one before it: the same sums once more, and no key beyond the
    // tile is touched. (Tiles of fewer than KT keys go through FewScores.)
    const int64_t first = key + KT <= tile.keys ? key : tile.keys - KT;
    const T* HWY_RESTRICT k = tile.k + first * tile.k_stride;
    VF acc[kAcc];
    TANDEM_UNROLL
    for (int i = 0; i < kAcc; ++i) acc[i] = hn::Zero(d);
    for (int64_t i = 0; i < full; ++i) {
      VF qv[RT];
      TANDEM_UNROLL
      for (int r = 0; r < RT; ++r) qv[r] = InRegister(hn::Load(d, q + (i * RT + r) * kLanes));
      TANDEM_UNROLL
      for (int j = 0; j < KT; ++j) {
        const VF kv = InRegister(LoadF32(k + j * tile.k_stride + i * kLanes));
        TANDEM_UNROLL
        for (int r = 0; r < RT; ++r) acc[j * RT + r] = hn::MulAdd(qv[r], kv, acc[j * RT + r]);
      }
    }
    if (tail != 0) {
      TANDEM_UNROLL
      for (int j = 0; j < KT; ++j) {
        const VF kv = LoadF32Tail(k + j * tile.k_stride + full * kLanes, tail);
        TANDEM_UNROLL
        for (int r = 0; r < RT; ++r) {
          acc[j * RT + r] =
              hn::MulAdd(hn::Load(d, q + (full * RT + r) * kLanes), kv, acc[j * RT + r]);
        }
      }
    }
    // The values of these keys are read next: their lines are on the way while K is multiplied.
    for (int j = 0; j < KT; ++j) PrefetchBytes(tile.v + (first + j) * tile.v_stride, v_bytes);
    VF sums[kVecs];
    SumLanes(acc, scale, scores + first * RT, sums);
    TANDEM_UNROLL
    for (int v = 0; v < kVecs; ++v) max[v] = hn::Max(max[v], sums[v]);
  }
}

// As Scores, for fewer keys than a group holds.
template <typename T, int RT>
HWY_NOINLINE void FewScores(const KeyTile<T>& tile, const TileShape& shape,
                            const float* HWY_RESTRICT q, float* HWY_RESTRICT scores) {
  const DF d;
  const int64_t vectors = (shape.head_dim + kLanes - 1) / kLanes;
  for (int64_t key = 0; key < tile.keys; ++key) {
    const T* HWY_RESTRICT k = tile.k + key * tile.k_stride;
    for (int r = 0; r < RT; ++r) {
      VF acc = hn::Zero(d);
      for (int64_t i = 0; i < vectors; ++i) {
        acc = hn::MulAdd(hn::Load(d, q + (i * RT + r) * kLanes), LoadF32Part(k, i, shape.head_dim),
                         acc);
      }
      scores[key * RT + r] = shape.scale * hn::GetLane(hn::SumOfLanes(d, acc));
    }
  }
}

// Rows of K to be fetched while V is multiplied: row i along with the i-th key.
struct Prefetch {
  const char* data = nullptr;
  int64_t stride = 0, bytes = 0, rows = 0;
};

// acc[r][first_vector ..] = factor[r] * acc[r] + sum over keys of p[key * p_stride + r] * v[key].
// `partial`: elements of the last vector when it is not whole, else 0.
template <typename T, int RT, int NV>
HWY_INLINE void ValuesBlock(const T* HWY_RESTRICT v, int64_t v_stride, int64_t keys,
                            const float* HWY_RESTRICT p, int64_t p_stride,
                            const float* HWY_RESTRICT factor, float* HWY_RESTRICT acc,
                            int64_t acc_stride, int partial, const Prefetch& next) {
  const DF d;
  VF a[RT * NV];
  TANDEM_UNROLL
  for (int r = 0; r < RT; ++r) {
    const VF f = hn::Set(d, factor[r]);
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) {
      a[r * NV + n] = hn::Mul(f, hn::Load(d, acc + r * acc_stride + n * kLanes));
    }
  }
  for (int64_t key = 0; key < keys; ++key) {
    const T* HWY_RESTRICT row = v + key * v_stride;
    if (key < next.rows) PrefetchBytes(next.data + key * next.stride, next.bytes);
    VF values[NV];
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) {
      values[n] = n == NV - 1 && partial ? LoadF32Tail(row + n * kLanes, partial)
                                         : LoadF32(row + n * kLanes);
    }
    TANDEM_UNROLL
    for (int r = 0; r < RT; ++r) {
      const VF weight = hn::Set(d, p[key * p_stride + r]);
      TANDEM_UNROLL
      for (int n = 0; n < NV; ++n) a[r * NV + n] = hn::MulAdd(weight, values[n], a[r * NV + n]);
    }
  }
  TANDEM_UNROLL
  for (int r = 0; r < RT; ++r) {
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) hn::Store(a[r * NV + n], d, acc + r * acc_stride + n * kLanes);
  }
}

// All Dv columns, in blocks of NV vectors; what is left over goes to smaller blocks.
template <typename T, int RT, int NV>
HWY_INLINE void Values(const T* HWY_RESTRICT v, int64_t v_stride, int64_t keys, int64_t v_head_dim,
                       const float* HWY_RESTRICT p, int64_t p_stride,
                       const float* HWY_RESTRICT factor, float* HWY_RESTRICT acc,
                       int64_t acc_stride, int64_t first_vector, const Prefetch& next) {
  const int64_t vectors = (v_head_dim + kLanes - 1) / kLanes;
  const int partial = static_cast<int>(v_head_dim % kLanes);
  int64_t i = first_vector;
  for (; i + NV <= vectors; i += NV) {
    ValuesBlock<T, RT, NV>(v + i * kLanes, v_stride, keys, p, p_stride, factor, acc + i * kLanes,
                           acc_stride, i + NV == vectors ? partial : 0, i == 0 ? next : Prefetch{});
  }
  if constexpr (NV > 1) {
    if (i < vectors) {
      Values<T, RT, NV / 2>(v, v_stride, keys, v_head_dim, p, p_stride, factor, acc, acc_stride, i,
                            next);
    }
  }
}

// Makes every lane of a row hold the maximum over that row's lanes.
template <int RT>
HWY_INLINE void FoldMax(VF (&max)[kVecs]) {
  if constexpr (kVecs == 1) {
    const DF d;
    const hn::RebindToSigned<DF> di;
    for (int step = RT; step < kLanes; step *= 2) {
      HWY_ALIGN int32_t index[kLanes];
      for (int i = 0; i < kLanes; ++i) index[i] = (i + step) % kLanes;
      const auto rotated = hn::TableLookupLanes(max[0], hn::IndicesFromVec(d, hn::Load(di, index)));
      max[0] = hn::Max(max[0], rotated);
    }
  } else {
    for (int v = RT; v < kVecs; ++v) max[v % RT] = hn::Max(max[v % RT], max[v]);
    for (int v = RT; v < kVecs; ++v) max[v] = max[v % RT];
  }
}

// Adds a tile to the state of a block of RT rows. `visible` (masked tiles only): the keys of the
// tile that each of the block's rows sees.
template <typename T, int RT>
HWY_NOINLINE void ProcessTile(const KeyTile<T>& tile, const TileShape& shape, const RowBlock& block,
                              const KeyRange* visible, float* HWY_RESTRICT scores) {
  constexpr int KT = kAcc / RT;
  constexpr int kRegisters = kLanes == 16 ? 16 : 8;
  constexpr int NV = kRegisters / RT > 8 ? 8 : kRegisters / RT;
  const DF d;
  const VF neg_inf = hn::Set(d, kNegInf);
  const int64_t count = tile.keys * RT;
  VF max[kVecs];
  TANDEM_UNROLL
  for (int v = 0; v < kVecs; ++v) max[v] = neg_inf;
  if (tile.keys >= KT) {
    Scores<T, RT>(tile, shape, block.q, scores, max);
  } else {
    FewScores<T, RT>(tile, shape, block.q, scores);
  }
  // Whole groups from here on: scores of -inf have weight 0.
  const int64_t groups = (count + kAcc - 1) / kAcc;
  for (int64_t i = count; i < groups * kAcc; ++i) scores[i] = kNegInf;
  if (visible != nullptr || tile.keys < KT) {
    for (int r = 0; visible != nullptr && r < block.rows; ++r) {
      for (int64_t key = 0; key < tile.keys; ++key) {
        if (key < visible[r].begin || key >= visible[r].end) scores[key * RT + r] = kNegInf;
      }
    }
    TANDEM_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      max[v] = neg_inf;
      for (int64_t g = 0; g < groups; ++g) {
        max[v] = hn::Max(max[v], hn::Load(d, scores + g * kAcc + v * kLanes));
      }
    }
  }

  FoldMax<RT>(max);
  HWY_ALIGN float factor[kAcc];
  TANDEM_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const VF old = hn::Load(d, block.max + v * kLanes);
    max[v] = hn::Max(old, max[v]);
    const VF f = ExpDiffVec(old, max[v]);
    hn::Store(f, d, factor + v * kLanes);
    hn::Store(max[v], d, block.max + v * kLanes);
    VF sum = hn::Mul(hn::Load(d, block.sum + v * kLanes), f);
    // Nothing seen yet: subtract 0, so that exp(-inf - 0) = 0.
    const VF safe = hn::IfThenZeroElse(hn::Eq(max[v], neg_inf), max[v]);
    for (int64_t g = 0; g < groups; ++g) {
      float* HWY_RESTRICT s = scores + g * kAcc + v * kLanes;
      const VF p = ExpNonPositive(hn::Sub(hn::Load(d, s), safe));
      hn::Store(p, d, s);
      sum = hn::Add(sum, p);
    }
    hn::Store(sum, d, block.sum + v * kLanes);
  }

  if (visible == nullptr) {
    const int64_t bytes = static_cast<int64_t>(sizeof(T));
    const Prefetch next = {reinterpret_cast<const char*>(tile.k + tile.keys * tile.k_stride),
                           tile.k_stride * bytes, shape.head_dim * bytes, tile.prefetch_keys};
    Values<T, RT, NV>(tile.v, tile.v_stride, tile.keys, shape.v_head_dim, scores, RT, factor,
                      block.acc, shape.acc_stride, 0, next);
    return;
  }
  // Row by row over the keys it sees: a weight of 0 would still let a NaN value through.
  for (int r = 0; r < block.rows; ++r) {
    const int64_t begin = visible[r].begin;
    const int64_t keys = visible[r].end - begin;
    Values<T, 1, 8>(tile.v + begin * tile.v_stride, tile.v_stride, keys, shape.v_head_dim,
                    scores + begin * RT + r, RT, factor + r, block.acc + r * shape.acc_stride,
                    shape.acc_stride, 0, Prefetch{});
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
