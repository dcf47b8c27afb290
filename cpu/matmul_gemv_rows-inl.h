// The dot products of matmul_gemv_simd.cc: some rows of weights as stored (floats, blocks of 32,
// blocks of 256) with up to 8 rows of f32 activations, while the weights needed later are
// requested. Compiled once per target.
#if defined(TANDEM_CPU_MATMUL_GEMV_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_MATMUL_GEMV_ROWS_INL_H_
#undef TANDEM_CPU_MATMUL_GEMV_ROWS_INL_H_
#else
#define TANDEM_CPU_MATMUL_GEMV_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "cpu/matmul_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

inline constexpr int64_t kAheadBytes = 8192;  // 200 ns at 40 GB/s

template <typename T>
inline constexpr int64_t kBlockLength = 1;
template <typename T>
requires kIsBlock<T>
inline constexpr int64_t kBlockLength<T> = T::kLength;

// Elements of K per pass over a strip: the activations of a pass stay in L1 (16 KiB; 32 for a
// single row, and for floats with many). Many rows of plain floats: pieces of 2 KiB of weight rows.
template <typename T, int kM>
inline constexpr int64_t kChunk = kM == 1                 ? 8192
                                  : kM < 4 || kIsBlock<T> ? 4096 / kM
                                                          : 2048 / sizeof(T);
// From a prefetch to its use. Measured with M = 4 and 8: f32 loses beyond 8 KiB (0.81 of read
// bandwidth with 6, 0.72 with 24), 16-bit floats gain up to 24 (0.79 with 6, 0.90 with 24).
template <typename T, int kM>
inline constexpr int64_t kAhead = kM < 4 || sizeof(T) != 2 ? kAheadBytes : 3 * kAheadBytes;

// Weights from this size on are requested for one use (kOnce below): past the caches that keep what
// they evict, which saves writing it there. 2 MiB: models with smaller matrices may stay in a last
// cache from one token to the next, and shall.
inline constexpr int64_t kOnceBytes = int64_t{2} << 20;

// Requests the cache lines of kBytes bytes.
template <int64_t kBytes, bool kOnce, typename T>
HWY_INLINE void PrefetchLines(const T* from) {
  const char* line = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < kBytes; byte += 64) {
    __builtin_prefetch(line + byte, 0, kOnce ? 0 : 2);
  }
}

// Keeps one load one load: GCC would repeat it as the memory operand of every multiply-add.
HWY_INLINE FloatVector LoadActivation(const float* from) {
  FloatVector x = LoadFloats(from);
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  asm("" : "+v"(x.raw));
#endif
  return x;
}

// Independent sums per output, so that two FMA units of 4 cycles' latency stay busy.
constexpr int SumsPerOutput(int outputs) { return outputs >= 8 ? 1 : (outputs >= 4 ? 2 : 4); }

// sum[r * kM + m] += dot(weight row r, activation row m) over `count` elements of plain floats. The
// rows at `ahead` are prefetched at the same pace. x: see InterleaveActivations.
template <typename T, int kRows, int kM, bool kOnce>
HWY_INLINE void DotRows(const T* const* w, const T* const* ahead, const float* x, int64_t count,
                        FloatVector* sum) {
  const FloatTag d;
  constexpr int kSums = SumsPerOutput(kRows * kM);
  // Whole cache lines per step.
  constexpr int kUnroll =
      std::max(kSums, static_cast<int>(64 / (kLanes * static_cast<int64_t>(sizeof(T)))));
  FloatVector local[kSums * kRows * kM];
  // Loops over registers are unrolled by hand, or GCC keeps the array in memory before and after.
#pragma GCC unroll 24
  for (int j = 0; j < kRows * kM; ++j) local[j] = sum[j];
#pragma GCC unroll 24
  for (int j = kRows * kM; j < kSums * kRows * kM; ++j) local[j] = hn::Zero(d);
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= count; i += kUnroll * kLanes) {
    for (int r = 0; r < kRows; ++r) {
      PrefetchLines<kUnroll * kLanes* static_cast<int64_t>(sizeof(T)), kOnce>(ahead[r] + i);
    }
#pragma GCC unroll 8
    for (int u = 0; u < kUnroll; ++u) {
      FloatVector weight[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) weight[r] = LoadFloats(w[r] + i + u * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        const auto activation = LoadActivation(x + (i + u * kLanes) * kM + m * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          FloatVector& to = local[(u % kSums) * kRows * kM + r * kM + m];
          to = hn::MulAdd(weight[r], activation, to);
        }
      }
    }
  }
  for (; i + kLanes <= count; i += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto weight = LoadFloats(w[r] + i);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        const auto activation = LoadActivation(x + i * kM + m * kLanes);
        local[r * kM + m] = hn::MulAdd(weight, activation, local[r * kM + m]);
      }
    }
  }
#pragma GCC unroll 24
  for (int j = 0; j < kRows * kM; ++j) {
#pragma GCC unroll 4
    for (int s = 1; s < kSums; ++s) local[j] = hn::Add(local[j], local[s * kRows * kM + j]);
    sum[j] = local[j];
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) {  // the last elements, in the first lane
    for (int r = 0; r < kRows; ++r) {
      for (int m = 0; m < kM; ++m) {
        HWY_ALIGN float product[kLanes] = {ToFloat(w[r][i]) *
                                           x[(i - lane) * kM + m * kLanes + lane]};
        sum[r * kM + m] = hn::Add(sum[r * kM + m], LoadFloats(product));
      }
    }
  }
}

// The same for rows of quantised blocks; `count` is a number of elements, whole blocks.
template <typename Block, int kRows, int kM>
HWY_INLINE void DotBlockRows(const Block* const* w, const Block* const* ahead, const float* x,
                             int64_t count, FloatVector* sum) {
  const FloatTag d;
  constexpr int kSums = SumsPerOutput(kRows * kM);
  constexpr int kUnroll = 4;  // blocks: about two cache lines of q8_0
  FloatVector local[kSums * kRows * kM];
  for (int j = 0; j < kRows * kM; ++j) local[j] = sum[j];
  for (int j = kRows * kM; j < kSums * kRows * kM; ++j) local[j] = hn::Zero(d);
  const auto add_block = [&](int64_t b, FloatVector* to) HWY_ATTR {
    const float* block_x = x + b * Block::kLength * kM;
    FloatVector scale[kRows];
    for (int r = 0; r < kRows; ++r) scale[r] = LoadScale(w[r][b].d);
    if constexpr (kM == 1) {
      // One activation row: scaling the block's sum is cheaper than scaling its weights.
      for (int r = 0; r < kRows; ++r) {
        auto partial = hn::Mul(LoadQuants(w[r][b], 0), LoadFloats(block_x));
        for (int64_t i = kLanes; i < Block::kLength; i += kLanes) {
          partial = hn::MulAdd(LoadQuants(w[r][b], i), LoadFloats(block_x + i), partial);
        }
        to[r] = hn::MulAdd(scale[r], partial, to[r]);
      }
    } else {
      for (int64_t i = 0; i < Block::kLength; i += kLanes) {
        FloatVector weight[kRows];
        for (int r = 0; r < kRows; ++r) weight[r] = hn::Mul(scale[r], LoadQuants(w[r][b], i));
        for (int m = 0; m < kM; ++m) {
          const auto activation = LoadActivation(block_x + i * kM + m * kLanes);
          for (int r = 0; r < kRows; ++r) {
            to[r * kM + m] = hn::MulAdd(weight[r], activation, to[r * kM + m]);
          }
        }
      }
    }
  };
  const int64_t blocks = count / Block::kLength;
  int64_t b = 0;
  for (; b + kUnroll <= blocks; b += kUnroll) {
    for (int r = 0; r < kRows; ++r) {
      PrefetchLines<kUnroll* static_cast<int64_t>(sizeof(Block)), false>(ahead[r] + b);
    }
    for (int u = 0; u < kUnroll; ++u) add_block(b + u, local + (u % kSums) * kRows * kM);
  }
  for (; b < blocks; ++b) add_block(b, local);
  for (int j = 0; j < kRows * kM; ++j) {
    for (int s = 1; s < kSums; ++s) local[j] = hn::Add(local[j], local[s * kRows * kM + j]);
    sum[j] = local[j];
  }
}

// What a super-block is "stored" to as it is expanded (super_block_vectors-inl.h): kM rows of sums,
// kSums each, that dequantised weights times the activations from element `at` on are added to.
template <int kM, int kSums>
struct DotTarget {
  const float* x;
  FloatVector* sums;
  int64_t at;
  HWY_INLINE DotTarget operator+(int64_t elements) const { return {x, sums, at + elements}; }
};
template <int kM, int kSums>
HWY_INLINE void StoreFloats(FloatVector weights, DotTarget<kM, kSums> to) {
  const float* x = to.x + to.at * kM;
  FloatVector* sums = to.sums + to.at / kLanes % kSums * kM;
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    sums[m] = hn::MulAdd(weights, LoadFloats(x + m * kLanes), sums[m]);
  }
}

// The same as DotBlockRows for one row of blocks of 256.
template <typename Block, int kM>
HWY_INLINE void DotSuperBlockRow(const Block* w, const Block* ahead, const float* x, int64_t count,
                                 FloatVector* sum) {
  constexpr int kSums = SumsPerOutput(kM);
  FloatVector local[kSums * kM];
#pragma GCC unroll 8
  for (int j = 0; j < kM; ++j) local[j] = sum[j];
#pragma GCC unroll 8
  for (int j = kM; j < kSums * kM; ++j) local[j] = hn::Zero(FloatTag());
  for (int64_t b = 0; b < count / Block::kLength; ++b) {
    PrefetchLines<static_cast<int64_t>(sizeof(Block)), false>(ahead + b);
    DequantizeBlockTo(w[b], DotTarget<kM, kSums>{x + b * Block::kLength * kM, local, 0});
  }
#pragma GCC unroll 8
  for (int j = 0; j < kM; ++j) {
#pragma GCC unroll 4
    for (int s = 1; s < kSums; ++s) local[j] = hn::Add(local[j], local[s * kM + j]);
    sum[j] = local[j];
  }
}

// [sums of neighbours in x | the same in y]
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_INLINE FloatVector AddNeighbours(FloatVector x, FloatVector y) {
  const FloatTag d;
  return hn::Add(hn::ConcatEven(d, y, x), hn::ConcatOdd(d, y, x));
}
#endif

// to[m] = the sum of the lanes of sums[m], for kM vectors. to has room for whole vectors.
template <int kM>
HWY_INLINE void SumLanes(const FloatVector* sums, float* to) {
  const FloatTag d;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  if constexpr (kM >= 4) {  // three instructions an output instead of eight
    const auto zero = hn::Zero(d);
    FloatVector all =
        AddNeighbours(AddNeighbours(sums[0], sums[1]), AddNeighbours(sums[2], sums[3]));
    if constexpr (kM == 8) {
      all = AddNeighbours(
          all, AddNeighbours(AddNeighbours(sums[4], sums[5]), AddNeighbours(sums[6], sums[7])));
    }
    if constexpr (kLanes > kM) all = AddNeighbours(all, zero);
    if constexpr (kLanes > 2 * kM) all = AddNeighbours(all, zero);
    StoreFloats(all, to);
    return;
  }
#endif
  for (int m = 0; m < kM; ++m) to[m] = hn::GetLane(hn::SumOfLanes(d, sums[m]));
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
