// Matrix-vector product and its neighbours (M <= 8), as decoding does: limited by reading b once.
//
// Algorithm: dot products of stored weight rows with f32 activations. Weights are widened (or
//   dequantised) in registers and multiplied in f32, so the only error beside rounding is the
//   format's own: activations are not rounded, unlike in gemv_int8_* (matmul_gemv_int8_simd.cc),
//   which comes first for quantised weights wherever rounding is allowed.
// Mapping: one task per strip of kStrip output features, whatever the thread count. A strip walks
//   its weight rows in memory order, a chunk of K at a time, with several independent sums per row.
//   The rows kAheadBytes further on are prefetched: rows are too short (2 to 8 KiB) for the
//   hardware's prefetchers to get going. Measured on one Zen 5 core that reads 45 GB/s, M = 1,
//   K = 2048: q8_0 7 GB/s without, 40 with; f16 31 GB/s with four rows side by side, 40 in order.
//   Floats of one row are requested for one use: f16 with K = 5632 0.68 of read bandwidth without,
//   0.86 with (its activations no longer fall out of L1), K = 2048 0.88 and 0.94.
// Memory: each byte of b is read once; the activations (M * K f32) stay in L1 or L2.
//   Products that share a (grouped_matmul) are one list of strips; a strip of a gate is done
//   together with that of its up, which are joined while both are in L1.
// Range: M <= 8 (4 for blocks of 256, which rows_* expands once for more), b in stored form (K
//   contiguous), any float or block dtype, any N, K and batch.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_gemv_simd.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on
#include <algorithm>
#include <cstdint>

#include "core/kernel.h"
#include "core/status.h"
#include "cpu/matmul_group.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

constexpr int64_t kStrip = 64;         // output features per task
constexpr int64_t kAheadBytes = 8192;  // 200 ns at 40 GB/s

template <typename T>
constexpr int64_t kBlockLength = 1;
template <typename T>
requires kIsBlock<T>
constexpr int64_t kBlockLength<T> = T::kLength;

// Elements of K per pass over a strip: the activations of a pass stay in L1 (16 KiB; 32 for a
// single row, and for floats with many). Many rows of plain floats: pieces of 2 KiB of weight rows.
template <typename T, int kM>
constexpr int64_t kChunk = kM == 1                 ? 8192
                           : kM < 4 || kIsBlock<T> ? 4096 / kM
                                                   : 2048 / sizeof(T);
// From a prefetch to its use. Measured with M = 4 and 8: f32 loses beyond 8 KiB (0.81 of read
// bandwidth with 6, 0.72 with 24), 16-bit floats gain up to 24 (0.79 with 6, 0.90 with 24).
template <typename T, int kM>
constexpr int64_t kAhead = kM < 4 || sizeof(T) != 2 ? kAheadBytes : 3 * kAheadBytes;

// Weights from this size on are requested for one use (kOnce below): past the caches that keep what
// they evict, which saves writing it there. 2 MiB: models with smaller matrices may stay in a last
// cache from one token to the next, and shall.
constexpr int64_t kOnceBytes = int64_t{2} << 20;

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

// Output features [0, columns) of b, for kM activation rows, into tile[m][kMaxTileColumns]. b has
// rows_to_end rows.
template <typename T, int kM, bool kOnce = false>
HWY_NOINLINE void Strip(const T* b, int64_t b_stride, int64_t rows_to_end, const float* x,
                        int64_t columns, int64_t k, float* tile) {
  const FloatTag d;
  // One row at a time walks memory in order. With many activation rows, two or three weight rows
  // share each activation that is loaded.
  constexpr int kRows =
      kM <= 2 || kLanes < 16 || kBlockLength<T> == 256 ? 1 : (kIsBlock<T> ? 2 : 3);
  for (int64_t begin = 0; begin == 0 || begin < k; begin += kChunk<T, kM>) {
    const int64_t count = std::min(kChunk<T, kM>, k - begin);
    const bool first = begin == 0, last = begin + count >= k;
    const T* chunk = b + begin / kBlockLength<T>;
    const int64_t chunk_bytes =
        std::max<int64_t>(count / kBlockLength<T> * static_cast<int64_t>(sizeof(T)), 1);
    const int64_t rows_ahead = std::max<int64_t>(kRows, kAhead<T, kM> / chunk_bytes);
    // After the strip's rows come those of its next chunk; after the last chunk, the next strip,
    // which is likely another worker's, but may as well be in its neighbour's cache.
    const auto row_ahead = [&](int64_t n) {
      if (first && last) {  // whole rows: memory in its own order
        return chunk + n * b_stride + kAhead<T, kM> / static_cast<int64_t>(sizeof(T));
      }
      const int64_t next = n + rows_ahead;
      if (next < columns) return chunk + next * b_stride;
      if (last) return (next < rows_to_end ? b + next * b_stride : chunk + n * b_stride);
      return chunk + std::min(next - columns, columns - 1) * b_stride +
             kChunk<T, kM> / kBlockLength<T>;
    };
    const auto dot = [&]<int kCount>(int64_t n) HWY_ATTR {
      const T* rows[kCount];
      const T* ahead[kCount];
      for (int r = 0; r < kCount; ++r) {
        rows[r] = chunk + (n + r) * b_stride;
        ahead[r] = row_ahead(n + r);
      }
      FloatVector sums[kCount * kM];
      for (int j = 0; j < kCount * kM; ++j) sums[j] = hn::Zero(d);
      if constexpr (kBlockLength<T> == 256) {
        for (int r = 0; r < kCount; ++r) {
          DotSuperBlockRow<T, kM>(rows[r], ahead[r], x + begin * kM, count, sums + r * kM);
        }
      } else if constexpr (kIsBlock<T>) {
        DotBlockRows<T, kCount, kM>(rows, ahead, x + begin * kM, count, sums);
      } else {
        DotRows<T, kCount, kM, kOnce>(rows, ahead, x + begin * kM, count, sums);
      }
      // Chunks meet as finished sums: vectors of them would take as much of L1 as the activations.
      for (int r = 0; r < kCount; ++r) {
        HWY_ALIGN float lanes[std::max<int64_t>(kM, kLanes)];
        SumLanes<kM>(sums + r * kM, lanes);
        for (int m = 0; m < kM; ++m) {
          float& to = tile[m * kMaxTileColumns + n + r];
          to = first ? lanes[m] : to + lanes[m];
        }
      }
    };
    int64_t n = 0;
    for (; n + kRows <= columns; n += kRows) dot.template operator()<kRows>(n);
    for (; n < columns; ++n) dot.template operator()<1>(n);
  }
}

// M rounded up to what Strip is compiled for; the rows in between are zeros.
inline int64_t PaddedRows(int64_t m) { return m <= 1 ? 1 : (m <= 2 ? 2 : (m <= 4 ? 4 : 8)); }

// One f32 row with K contiguous is used where it lies.
inline bool UsesActivationsInPlace(const MatMulArgs& args) {
  return args.m() <= 1 && args.a.dtype == DType::kF32 && (args.a.stride(-1) == 1 || args.k() <= 1);
}

inline int64_t PaddedDepth(int64_t k) { return (k + kLanes - 1) / kLanes * kLanes; }

struct GemvScratch {
  float* x = nullptr;    // [batches of a][PaddedDepth * PaddedRows]
  float* row = nullptr;  // [K]
};
inline GemvScratch CarveActivations(Workspace& workspace, const MatMulArgs& args) {
  if (UsesActivationsInPlace(args)) return {};
  const int64_t batches = args.a.rank() == 3 ? args.a.dim(0) : 1;
  return {workspace.Take<float>(batches * PaddedRows(args.m()) * PaddedDepth(args.k())),
          workspace.Take<float>(args.k())};
}

// The activations of batch z as the strips read them, front to back: kLanes elements of K of the
// first row, of the second, ..., of the last; the next kLanes elements; and so on. Rows and
// elements that do not exist are zeros. (Rows side by side in their own order would be a power of
// two apart, and evict each other from L1.)
inline void InterleaveActivations(const MatMulArgs& args, int64_t offset, float* row, float* to) {
  const int64_t k = args.k(), m = args.m(), padded = PaddedRows(m);
  if (m != padded || k % kLanes != 0) std::fill_n(to, PaddedDepth(k) * padded, 0.0f);
  for (int64_t i = 0; i < m; ++i) {
    WidenViewRow(args.a, offset + args.a.stride(-2) * i, args.a.stride(-1), k, row);
    for (int64_t j = 0; j < k; j += kLanes) {
      std::copy_n(row + j, std::min(kLanes, k - j), to + j * padded + i * kLanes);
    }
  }
}

// Output features n0 .. n0 + columns of args, batch z: their sums, into tile[m][kMaxTileColumns].
template <typename T>
void MultiplyStrip(const MatMulArgs& args, const MatMulOperands& operands, int64_t z, int64_t n0,
                   int64_t columns, const float* x, float* tile) {
  const int64_t n = args.n(), k = args.k();
  // Strides of block types count elements.
  const int64_t block = BlockLength(args.b.dtype);
  const int64_t b_stride = args.b.stride(-2) / block;
  const T* b = args.b.As<T>() + operands.b_batch * z / block + n0 * b_stride;
  switch (PaddedRows(args.m())) {
    case 1:
      if (!kIsBlock<T> && args.batch() * ByteOffset(args.b.dtype, n * k) >= kOnceBytes) {
        Strip<T, 1, true>(b, b_stride, n - n0, x, columns, k, tile);
      } else {
        Strip<T, 1>(b, b_stride, n - n0, x, columns, k, tile);
      }
      break;
    case 2:
      Strip<T, 2>(b, b_stride, n - n0, x, columns, k, tile);
      break;
    case 4:
      Strip<T, 4>(b, b_stride, n - n0, x, columns, k, tile);
      break;
    default:
      if constexpr (kBlockLength<T> < 256) {
        Strip<T, 8>(b, b_stride, n - n0, x, columns, k, tile);
      }
      break;
  }
}

absl::Status RunGroup(const KernelContext& context, const MatMulGroup& group) {
  const MatMulArgs& first = group.first();
  const int64_t m = first.m(), k = first.k();
  const int64_t a_batches = first.a.rank() == 3 ? first.a.dim(0) : 1;
  const int64_t a_batch = MatMulOperands(first).a_batch;

  const GemvScratch scratch = CarveActivations(*context.workspace, first);
  if (!context.workspace->ok()) return absl::InternalError("gemv: workspace too small");
  const bool in_place = UsesActivationsInPlace(first);
  const int64_t x_batch = in_place ? a_batch : PaddedDepth(k) * PaddedRows(m);
  if (!in_place) {
    for (int64_t z = 0; z < a_batches; ++z) {
      InterleaveActivations(first, a_batch * z, scratch.row, scratch.x + z * x_batch);
    }
  }
  const float* x = in_place ? first.a.As<float>() : scratch.x;

  const auto strips = [](const MatMulArgs& args) { return (args.n() + kStrip - 1) / kStrip; };
  const GroupTasks tasks(group,
                         [&](const MatMulArgs& args) { return args.batch() * strips(args); });
  int64_t weight_bytes = 0;
  for (const MatMulArgs& args : group.products) {
    weight_bytes += args.batch() * ByteOffset(args.b.dtype, args.n() * k);
  }
  const auto run = [&](int64_t task, int) HWY_ATTR {
    const GroupTasks::Place place = tasks.At(task);
    const MatMulArgs& args = group.products[place.product];
    const int64_t z = place.task / strips(args), n0 = place.task % strips(args) * kStrip;
    const int64_t columns = std::min(kStrip, args.n() - n0);
    const float* rows = a_batches > 1 ? x + x_batch * z : x;
    HWY_ALIGN float tiles[2][8 * kMaxTileColumns];
    const auto multiply = [&](const MatMulArgs& product, float* tile) {
      DispatchWeight(product.b.dtype, [&]<typename T>() {
        MultiplyStrip<T>(product, MatMulOperands(product), z, n0, columns, rows, tile);
      });
    };
    multiply(args, tiles[0]);
    if (!group.gated) {
      FinishTile(args, MatMulOperands(args), z, 0, m, n0, columns, tiles[0], kMaxTileColumns);
      return;
    }
    multiply(group.products[1], tiles[1]);
    FinishGatedTile(args, group.products[1], 0, m, n0, columns, tiles[0], tiles[1],
                    kMaxTileColumns);
  };
  CpuStream::Of(context).pool().ParallelFor(tasks.total(), run, weight_bytes);
  return absl::OkStatus();
}

absl::Status GemvRun(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  return RunGroup(context, GroupOf(args));
}

absl::Status GroupedGemvRun(const KernelContext& context, const GroupedMatMulArgs& args) {
  if (args.m() == 0) return absl::OkStatus();
  return RunGroup(context, GroupedProducts(args).group());
}

int64_t GemvWorkspace(const KernelContext&, const MatMulArgs& args) {
  Workspace counting = Workspace::Counting();
  CarveActivations(counting, args);
  return counting.bytes_used();
}

int64_t GroupedGemvWorkspace(const KernelContext& context, const GroupedMatMulArgs& args) {
  return GemvWorkspace(context, args.ProductArgs(0));  // the activations: the same for all
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  const int64_t most = BlockLength(args.b.dtype) == 256 ? 4 : 8;
  if (args.m() > most) return Unimplemented("takes up to ", most, " rows, got ", args.m());
  if (!args.b.present()) return Unimplemented("reads b itself; only b_packed was given");
  if (args.b.stride(-1) != 1 && args.k() > 1) {
    return Unimplemented("needs b with contiguous rows, got stride ", args.b.stride(-1));
  }
  return CheckIsa(context, kIsa);
}

}  // namespace

Kernel<MatMulArgs> GemvMatMul(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"gemv_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, N_AVX3::GemvWorkspace,
              N_AVX3::GemvRun};
    case Isa::kAvx2:
      return {"gemv_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, N_AVX2::GemvWorkspace,
              N_AVX2::GemvRun};
    default:
      return {"gemv_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>,
              TANDEM_N_SCALAR::GemvWorkspace, TANDEM_N_SCALAR::GemvRun};
  }
}

Kernel<GroupedMatMulArgs> GroupedGemvMatMul(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"gemv_avx512", DeviceKind::kCpu, SupportsGroup<Supports<Isa::kAvx512>>,
              N_AVX3::GroupedGemvWorkspace, N_AVX3::GroupedGemvRun};
    case Isa::kAvx2:
      return {"gemv_avx2", DeviceKind::kCpu, SupportsGroup<Supports<Isa::kAvx2>>,
              N_AVX2::GroupedGemvWorkspace, N_AVX2::GroupedGemvRun};
    default:
      return {"gemv_scalar", DeviceKind::kCpu, SupportsGroup<Supports<Isa::kScalar>>,
              TANDEM_N_SCALAR::GroupedGemvWorkspace, TANDEM_N_SCALAR::GroupedGemvRun};
  }
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
