// The arithmetic of decode attention on one tile of keys against one block of query rows of the
// same key/value head. Compiled once per target; the algorithm is described in attention_decode.cc.
//
//   scores   RT rows x kKeys keys of accumulators; vectors along D, or with 8 rows and 16 lanes
//            half a vector along D for each of two keys. Each piece of K is loaded (and widened)
//            once and used for all rows. The accumulators are then summed across their lanes by a
//            tree of interleaves and adds, about 3 instructions per score, which runs beside the
//            next keys' multiply-adds.
//   softmax  online, over the scores [key][row]: no lane is idle when there are few rows.
//   values   vectors along Dv: RT rows x NV vectors of accumulators; each piece of V is loaded (and
//            widened) once and used for all rows.
//
// Keys are reached through arrays of row pointers: a dense cache, pages of any size and new keys
// beside the cache are the same to everything here.
//
// Measured (Zen 5) and decided against: 128-bit broadcasts of K against vectors of several rows
// (the broadcast takes an arithmetic port: 20 cycles for 16 of multiply-adds), 64-bit broadcasts
// (free, but need 16 keys at a constant distance; no better than the above), K widened into scratch
// beforehand (a store of what has just been computed costs a multiply-add slot or more).
#if defined(TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/ops/online_softmax.h"
#include "cpu/attention_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

inline constexpr int kTileKeys = 64;  // at most
inline constexpr int kKeyGroup = 16;  // a multiple of every kKeys
inline constexpr int kMaxBlockRows = std::min(kLanes, 8);

// How a block of RT rows is computed.
template <int RT>
struct BlockLayout {
  // Keys beside each other in one vector of scores.
  static constexpr int kWidth = kLanes / RT;
  // Keys beside each other in one vector of the first product; it holds kLanes / kBeside elements
  // of D of each. With 8 rows two, which halves the work of adding up lanes.
  static constexpr int kBeside = kLanes >= 16 && RT == 8 ? 2 : 1;
  static constexpr int kParts = kLanes / kBeside;
  // Keys at a time, one accumulator for each row of each vector of keys.
  static constexpr int kKeys = kWidth * kBeside;
  static_assert(kLanes % RT == 0 && kKeyGroup % kKeys == 0);
};

// The sums over P neighbouring lanes of P vectors: lane b * P + i of the result is the sum over
// lanes b * P .. b * P + P - 1 of a[i].
template <int P>
HWY_INLINE VF SumParts(const VF* HWY_RESTRICT a) {
#if HWY_TARGET == HWY_SCALAR
  return a[0];
#else
  const DF d;
  const hn::Repartition<double, DF> dd;
  // Within 128-bit blocks: 4 vectors become one with their 4 block sums in order.
  VF quad[P / 4];
  TANDEM_UNROLL
  for (int i = 0; i < P / 4; ++i) {
    const VF x = a[4 * i], y = a[4 * i + 1], z = a[4 * i + 2], w = a[4 * i + 3];
    const auto xy =
        hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, x, y), hn::InterleaveUpper(d, x, y)));
    const auto zw =
        hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, z, w), hn::InterleaveUpper(d, z, w)));
    quad[i] = hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, xy, zw)),
                      hn::BitCast(d, hn::InterleaveUpper(dd, xy, zw)));
  }
#if HWY_TARGET == HWY_AVX3
  // Across pairs of blocks, then halves.
  const VF x = hn::Add(hn::OddEvenBlocks(quad[1], quad[0]),
                       hn::SwapAdjacentBlocks(hn::OddEvenBlocks(quad[0], quad[1])));
  if constexpr (P == 8) {
    return x;
  } else {
    const VF y = hn::Add(hn::OddEvenBlocks(quad[3], quad[2]),
                         hn::SwapAdjacentBlocks(hn::OddEvenBlocks(quad[2], quad[3])));
    return hn::Add(hn::ConcatLowerLower(d, y, x), hn::ConcatUpperUpper(d, y, x));
  }
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(hn::ConcatLowerLower(d, quad[1], quad[0]),
                 hn::ConcatUpperUpper(d, quad[1], quad[0]));
#else
  return quad[0];
#endif
#endif
}

// For each lane, the maximum over the lanes l, l + RT, l + 2 RT, ... (modulo kLanes).
template <int RT>
HWY_INLINE VF MaxOfRows(VF x) {
#if HWY_TARGET != HWY_SCALAR
  const DF d;
  if constexpr (RT <= 8 && kLanes == 16) x = hn::Max(x, hn::ConcatLowerUpper(d, x, x));
  if constexpr (RT <= 4 && kLanes >= 8) x = hn::Max(x, hn::SwapAdjacentBlocks(x));
  if constexpr (RT <= 2) x = hn::Max(x, hn::Shuffle1032(x));
  if constexpr (RT == 1) x = hn::Max(x, hn::Shuffle2301(x));
#endif
  return x;
}

// Fetches the rows that are needed next while others are worked on, line by line: each prefetch
// that misses holds one of the few requests the memory system takes at a time and waits for it, so
// they go out evenly, in the order of use, and one tile ahead. Two tiles ahead, with K and V as two
// streams, the same loops read 27-31 GB/s from memory instead of 36 (Zen 5, 43 for a plain sum).
// Into the first-level cache, or only into the second: there Zen 5 drops what comes in a burst, and
// Emerald Rapids takes more requests at a time (docs/results/attention.md).
template <typename T>
class Fetcher {
 public:
  // rows[0 .. count), count >= 1, of row_bytes each.
  Fetcher(const T* const* rows, int64_t count, int64_t row_bytes, bool into_second_level)
      : next_(rows),
        last_(rows + count - 1),
        row_bytes_(row_bytes),
        into_second_level_(into_second_level) {
    // Rows behind each other are one long one (or look so: then the wrong lines are fetched).
    if (Address(*last_) - Address(*next_) == static_cast<uintptr_t>((count - 1) * row_bytes)) {
      row_bytes_ *= count;
      last_ = next_;
    }
    Enter();
  }

  // The next kBytes; in step `step` of equal ones, if that is less than a line. Behind the last row
  // that row again, which costs little.
  template <int kBytes>
  HWY_INLINE void Fetch(int64_t step) {
    if constexpr (kBytes < kLine) {
      if (step % (kLine / kBytes) == 0) FetchLines<1>();
    } else {
      FetchLines<kBytes / kLine>();
    }
  }
  // What has not been fetched yet.
  void FetchRest() {
    while (!done_) FetchLines<1>();
  }

 private:
  static constexpr int kLine = 64;

  // As a number: past the end of a row it need not lie in any object.
  static uintptr_t Address(const T* p) { return reinterpret_cast<uintptr_t>(p); }
  void Enter() {
    line_ = Address(*next_);
    end_ = line_ + static_cast<uintptr_t>(row_bytes_);
  }
  template <int kLines>
  HWY_INLINE void FetchLines() {
    TANDEM_UNROLL
    for (int i = 0; i < kLines; ++i) {
      const char* line = reinterpret_cast<const char*>(line_ + i * kLine);
      into_second_level_ ? __builtin_prefetch(line, 0, 2) : __builtin_prefetch(line, 0, 3);
    }
    line_ += kLines * kLine;
    if (HWY_LIKELY(line_ < end_)) return;
    done_ = next_ == last_;
    if (!done_) ++next_;
    Enter();
  }

  const T* const* next_;
  const T* const* last_;
  int64_t row_bytes_;
  uintptr_t line_, end_;
  bool into_second_level_;
  bool done_ = false;
};

// Rows of q as Scores reads them: [ceil(D / kParts)][RT][kBeside copies of kParts], zeros behind D.
// `rows`: [RT][stride], f32, zeros up to whole vectors.
template <int RT>
HWY_NOINLINE void PackBlock(const float* HWY_RESTRICT rows, int64_t stride, int64_t head_dim,
                            float* HWY_RESTRICT out) {
  constexpr int B = BlockLayout<RT>::kBeside, P = BlockLayout<RT>::kParts;
  for (int64_t e = 0; e < head_dim; e += P) {
    for (int r = 0; r < RT; ++r) {
      for (int b = 0; b < B; ++b, out += P)
        std::memcpy(out, rows + r * stride + e, P * sizeof(float));
    }
  }
}

// Elements [e, e + kLanes / kBeside) of kBeside keys beside each other, as f32; twice as many, as
// they are, if kPairs.
template <typename T, int kBeside, bool kPairs>
HWY_INLINE VF LoadKeys(const T* const* HWY_RESTRICT k, int64_t e) {
  if constexpr (kPairs && kBeside == 1) {
    return hn::LoadU(DF(), reinterpret_cast<const float*>(k[0] + e));
  } else if constexpr (kPairs) {
#if HWY_TARGET == HWY_AVX3
    return LoadTwoHalves(reinterpret_cast<const float*>(k[0] + e),
                         reinterpret_cast<const float*>(k[1] + e));
#endif
  } else if constexpr (kBeside == 1) {
    return LoadF32(k[0] + e);
  } else {
#if HWY_TARGET == HWY_AVX3
    return LoadTwoHalves(k[0] + e, k[1] + e);
#endif
  }
}

// The last n elements of kBeside keys, from e on, then zeros.
template <typename T, int kBeside, bool kPairs>
HWY_INLINE VF LoadKeysTail(const T* const* HWY_RESTRICT k, int64_t e, int n) {
  constexpr int kElements = kPairs ? 2 * kLanes : kLanes;
  HWY_ALIGN T padded[kElements] = {};
  for (int i = 0; i < kBeside; ++i) {
    std::memcpy(padded + i * (kElements / kBeside), k[i] + e, static_cast<size_t>(n) * sizeof(T));
  }
  if constexpr (kPairs) {
    return hn::Load(DF(), reinterpret_cast<const float*>(padded));
  } else {
    return LoadF32(padded);
  }
}

// a * b + c in each lane; kPairs: of the products of both bf16 of a lane, exact, with subnormal
// numbers taken for 0.
template <bool kPairs>
HWY_INLINE VF MulAddLanes(VF a, VF b, VF c) {
  if constexpr (kPairs) {
#if HWY_TARGET == HWY_AVX3
    asm("vdpbf16ps %2, %1, %0" : "+v"(c.raw) : "v"(a.raw), "v"(b.raw));
#endif
    return c;
  } else {
    return hn::MulAdd(a, b, c);
  }
}

// scores[key][row] = q[row] . k[key] for `keys` keys, rounded up to whole groups: k has that many
// pointers to rows. q: [ceil(D / kParts)][RT][kBeside copies of kParts]. kPairs: a lane is a pair
// of neighbouring elements (see attention_decode_pairs-inl.h), so that kParts lanes are twice as
// many.
template <typename T, int RT, bool kPairs, bool kTail>
HWY_NOINLINE void ScoresLoop(const T* const* HWY_RESTRICT k, int64_t keys, int64_t head_dim,
                             const float* HWY_RESTRICT q, float scale, float* HWY_RESTRICT scores,
                             Fetcher<T>& ahead) {
  using Layout = BlockLayout<RT>;
  constexpr int KT = Layout::kKeys, B = Layout::kBeside, P = Layout::kParts;
  constexpr int kStep = kPairs ? 2 * P : P;  // elements of D of each key
  constexpr int kBytes = KT * kStep * static_cast<int>(sizeof(T));
  const DF d;
  const int64_t whole = head_dim / kStep * kStep;
  Fetcher<T> fetch = ahead;  // a copy, to be kept in registers
  for (int64_t key = 0; key < keys; key += KT, scores += KT * RT) {
    const T* rows[KT];
    TANDEM_UNROLL
    for (int j = 0; j < KT; ++j) rows[j] = k[key + j];
    VF acc[KT / B][RT];
    TANDEM_UNROLL
    for (int j = 0; j < KT / B; ++j) {
      TANDEM_UNROLL
      for (int r = 0; r < RT; ++r) acc[j][r] = hn::Zero(d);
    }
    const auto add = [&](const float* HWY_RESTRICT qp, auto load) HWY_ATTR {
      VF qv[RT];
      TANDEM_UNROLL
      for (int r = 0; r < RT; ++r) qv[r] = InRegister(hn::Load(d, qp + r * kLanes));
      TANDEM_UNROLL
      for (int j = 0; j < KT / B; ++j) {
        const VF kv = InRegister(load(rows + j * B));
        TANDEM_UNROLL
        for (int r = 0; r < RT; ++r) acc[j][r] = MulAddLanes<kPairs>(qv[r], kv, acc[j][r]);
      }
    };
    const float* HWY_RESTRICT qp = q;
    for (int64_t e = 0; e < whole; e += kStep, qp += RT * kLanes) {
      fetch.template Fetch<kBytes>(e / kStep);
      add(qp, [e](const T* const* row) HWY_ATTR { return LoadKeys<T, B, kPairs>(row, e); });
    }
    if constexpr (kTail) {
      const int tail = static_cast<int>(head_dim - whole);
      add(qp, [whole, tail](const T* const* row)
                  HWY_ATTR { return LoadKeysTail<T, B, kPairs>(row, whole, tail); });
    }
    const auto store = [&](VF sums, float* HWY_RESTRICT to) HWY_ATTR {
      if constexpr (kPairs) sums = hn::Mul(sums, hn::Set(d, scale));
      hn::Store(sums, d, to);
    };
    if constexpr (P == RT) {
      TANDEM_UNROLL
      for (int j = 0; j < KT / B; ++j) store(SumParts<P>(acc[j]), scores + j * kLanes);
    } else {
      static_assert(B == 1);
      store(SumParts<P>(&acc[0][0]), scores);
    }
  }
  ahead = fetch;
}

template <typename T, int RT, bool kPairs>
HWY_INLINE void Scores(const T* const* HWY_RESTRICT k, int64_t keys, int64_t head_dim,
                       const float* HWY_RESTRICT q, float scale, float* HWY_RESTRICT scores,
                       Fetcher<T>& ahead) {
  if (head_dim % (BlockLayout<RT>::kParts * (kPairs ? 2 : 1)) == 0) {
    ScoresLoop<T, RT, kPairs, false>(k, keys, head_dim, q, scale, scores, ahead);
  } else {
    ScoresLoop<T, RT, kPairs, true>(k, keys, head_dim, q, scale, scores, ahead);
  }
}

// Online softmax: scores[key][row] become weights. max and sum: [kLanes], lane l for row l % RT;
// max equal within a row, sum to be added up over the row's lanes. factor[row]: what the
// accumulators must be multiplied by. Scores up to a whole vector behind the last key are -inf.
template <int RT>
HWY_NOINLINE void Softmax(float* HWY_RESTRICT scores, int64_t keys, float* HWY_RESTRICT max,
                          float* HWY_RESTRICT sum, float* HWY_RESTRICT factor) {
  const DF d;
  const VF neg_inf = hn::Set(d, kNegInf);
  const int64_t count = (keys * RT + kLanes - 1) / kLanes * kLanes;
  VF top[2] = {neg_inf, neg_inf};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    top[0] = hn::Max(top[0], hn::Load(d, scores + i));
    top[1] = hn::Max(top[1], hn::Load(d, scores + i + kLanes));
  }
  if (i < count) top[0] = hn::Max(top[0], hn::Load(d, scores + i));
  const VF old = hn::Load(d, max);
  const VF now = hn::Max(old, MaxOfRows<RT>(hn::Max(top[0], top[1])));
  const VF f = ExpDiffVec(old, now);
  hn::Store(now, d, max);
  hn::Store(f, d, factor);
  // Nothing seen yet: subtract 0, so that exp(-inf - 0) = 0.
  const VF safe = hn::IfThenZeroElse(hn::Eq(now, neg_inf), now);
  VF total[2] = {hn::Mul(hn::Load(d, sum), f), hn::Zero(d)};
  const auto weigh = [&](float* HWY_RESTRICT s, VF& into) HWY_ATTR {
    const VF p = ExpNonPositive(hn::Sub(hn::Load(d, s), safe));
    hn::Store(p, d, s);
    into = hn::Add(into, p);
  };
  for (i = 0; i + 2 * kLanes <= count; i += 2 * kLanes) {
    weigh(scores + i, total[0]);
    weigh(scores + i + kLanes, total[1]);
  }
  if (i < count) weigh(scores + i, total[0]);
  hn::Store(hn::Add(total[0], total[1]), d, sum);
}

// acc[r][0 .. NV) = factor[r] * acc[r] + sum over keys of weight[key][r] * v[key], NV vectors from
// `column` on. kTail: the last vector is partial, of `tail` elements.
template <typename T, int RT, int NV, bool kTail>
HWY_NOINLINE void ValuesBlock(const T* const* HWY_RESTRICT v, int64_t column, int64_t keys,
                              const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factor,
                              float* HWY_RESTRICT acc, int64_t acc_stride, int tail,
                              Fetcher<T>& ahead) {
  const DF d;
  VF a[RT][NV];
  TANDEM_UNROLL
  for (int r = 0; r < RT; ++r) {
    const VF f = hn::Set(d, factor[r]);
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) {
      a[r][n] = hn::Mul(f, hn::Load(d, acc + r * acc_stride + n * kLanes));
    }
  }
  const auto add = [&](const T* HWY_RESTRICT row, const float* HWY_RESTRICT weight) HWY_ATTR {
    VF values[NV];
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) {
      values[n] = InRegister(kTail && n == NV - 1 ? LoadF32Tail(row + n * kLanes, tail)
                                                  : LoadF32(row + n * kLanes));
    }
    TANDEM_UNROLL
    for (int r = 0; r < RT; ++r) {
      const VF w = InRegister(hn::Set(d, weight[r]));
      TANDEM_UNROLL
      for (int n = 0; n < NV; ++n) a[r][n] = hn::MulAdd(w, values[n], a[r][n]);
    }
  };
  Fetcher<T> fetch = ahead;
  for (int64_t key = 0; key < keys; ++key) {
    fetch.template Fetch<NV * kLanes* static_cast<int>(sizeof(T))>(key);
    add(v[key] + column, weights + key * RT);
  }
  ahead = fetch;
  TANDEM_UNROLL
  for (int r = 0; r < RT; ++r) {
    TANDEM_UNROLL
    for (int n = 0; n < NV; ++n) hn::Store(a[r][n], d, acc + r * acc_stride + n * kLanes);
  }
}

// All Dv columns, in blocks of NV vectors; what is left over goes to smaller blocks.
template <typename T, int RT, int NV>
HWY_INLINE void ValuesColumns(const T* const* HWY_RESTRICT v, int64_t first_vector, int64_t keys,
                              int64_t v_head_dim, const float* HWY_RESTRICT weights,
                              const float* HWY_RESTRICT factor, float* HWY_RESTRICT acc,
                              int64_t acc_stride, Fetcher<T>& ahead) {
  const int64_t whole = v_head_dim / kLanes;
  int64_t i = first_vector;
  for (; i + NV <= whole; i += NV) {
    ValuesBlock<T, RT, NV, false>(v, i * kLanes, keys, weights, factor, acc + i * kLanes,
                                  acc_stride, 0, ahead);
  }
  if constexpr (NV > 1) {
    if (i < whole) {
      return ValuesColumns<T, RT, NV / 2>(v, i, keys, v_head_dim, weights, factor, acc, acc_stride,
                                          ahead);
    }
  }
  if (i * kLanes < v_head_dim) {
    ValuesBlock<T, RT, 1, true>(v, i * kLanes, keys, weights, factor, acc + i * kLanes, acc_stride,
                                static_cast<int>(v_head_dim - i * kLanes), ahead);
  }
}

template <typename T, int RT>
HWY_NOINLINE void Values(const T* const* HWY_RESTRICT v, int64_t keys, int64_t v_head_dim,
                         const float* HWY_RESTRICT weights, const float* HWY_RESTRICT factor,
                         float* HWY_RESTRICT acc, int64_t acc_stride, Fetcher<T>& ahead) {
  constexpr int kRegisters = kLanes >= 16 ? 16 : 8;
  constexpr int NV = std::min(kRegisters / RT, 8);
  ValuesColumns<T, RT, NV>(v, 0, keys, v_head_dim, weights, factor, acc, acc_stride, ahead);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
