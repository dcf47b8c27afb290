// Matrix product with some dozens of rows (M = 9 .. 256) straight from stored weight rows.
//
// Algorithm: dot products along K, register-blocked: kTileRows rows of a times kGroup weight rows,
//   one vector of partial sums per output; the lanes are added at the end of each chunk of K (for
//   K = 1024 and a 6 x 4 tile 24 x 64 multiply-adds per 70 shuffles and adds). Unlike the panels of
//   matmul_tiled.h nothing is transposed: floats are multiplied from where they lie (f16 and bf16
//   widened in registers), quantised rows are dequantised into 16 KiB of L1, once per group.
//   While one group is multiplied, the next is requested from memory: with few rows a product takes
//   about as long as reading the weights, and expanding panels cannot overlap the two.
//   Measured on one Zen 5 core, N = 5632, K = 2048, cold weights: docs/results/matmul.md.
// Mapping: a task is one strip of output features for all M rows.
// Memory: b is read once from memory, and once per kTileRows rows from L1. a is copied once, in the
//   order of its use, and read once per group of kGroup weight rows, from L2: that is what bounds
//   M.
// Range: AVX-512 and AVX2; M <= 256, b in stored form (K contiguous), any float or block dtype, any
// N, K and batch.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_rows_simd.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/kernel.h"
#include "core/status.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

constexpr int kGroup = 4;  // weight rows per tile
// 24 accumulators, 6 vectors of a and one of b in 32 registers; 12, 3 and one in 16.
constexpr int kTileRows = kLanes >= 16 ? 6 : 3;
constexpr int64_t kMaxChunk = 1024;  // elements of K

// Up to 16 rows: a chunk of all of a (32 KiB) stays in L1. Beyond, it comes from L2 anyway.
inline int64_t ChunkOf(const MatMulArgs& args) { return args.m() <= 16 ? 512 : kMaxChunk; }

inline int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// What a tile requests while it computes: pieces of later weight rows, a cache line of each after
// every `section` elements of K, `step` bytes apart.
struct Ahead {
  const char* row[2];
  int64_t step;
  int64_t section;
};
// Elements in about a cache line, whole vectors.
template <typename T>
constexpr int64_t kSection = kIsBlock<T> ? 32 : 64 / sizeof(T);

// [sums of neighbours in x | the same in y]
HWY_INLINE FloatVector AddNeighbours(FloatVector x, FloatVector y) {
  const FloatTag d;
  return hn::Add(hn::ConcatEven(d, y, x), hn::ConcatOdd(d, y, x));
}

// sums[i][j] (rows kMaxTileColumns apart) = or += dot(a row i, b row j) over `count` elements,
// whole vectors. a: see PackRows. b: rows `stride` elements apart.
template <int kRows, typename T>
HWY_NOINLINE void MultiplyTile(const float* HWY_RESTRICT a, const T* HWY_RESTRICT b, int64_t stride,
                               int64_t count, bool first, Ahead ahead, float* HWY_RESTRICT sums) {
  const FloatTag d;
  FloatVector sum[kRows][kGroup];
  // Unrolled by hand, or GCC keeps the array in memory.
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kGroup; ++j) sum[i][j] = hn::Zero(d);
  }
  for (int64_t section = 0; section < count; section += ahead.section) {
    __builtin_prefetch(ahead.row[0], 0, 2);
    __builtin_prefetch(ahead.row[1], 0, 2);
    ahead.row[0] += ahead.step;
    ahead.row[1] += ahead.step;
    const int64_t end = std::min(section + ahead.section, count);
    for (int64_t k = section; k < end; k += kLanes) {
      FloatVector x[kRows];
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) x[i] = LoadFloats(a + k * kRows + i * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) {
        const auto weight = LoadFloats(b + j * stride + k);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) sum[i][j] = hn::MulAdd(x[i], weight, sum[i][j]);
      }
    }
  }
  // Rows whose lanes are added together: one vector then holds all their outputs.
  constexpr int kTogether = kLanes / kGroup;
  FloatVector row[kRows + kTogether];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    row[i] =
        AddNeighbours(AddNeighbours(sum[i][0], sum[i][1]), AddNeighbours(sum[i][2], sum[i][3]));
  }
#pragma GCC unroll 8
  for (int i = kRows; i < kRows + kTogether; ++i) row[i] = hn::Zero(d);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i += kTogether) {
    FloatVector all = row[i];
    if constexpr (kTogether == 2) all = AddNeighbours(row[i], row[i + 1]);
    if constexpr (kTogether == 4) {
      all = AddNeighbours(AddNeighbours(row[i], row[i + 1]), AddNeighbours(row[i + 2], row[i + 3]));
    }
    HWY_ALIGN float lanes[kLanes];
    StoreFloats(all, lanes);
    const hn::FixedTag<float, kGroup> d4;
    for (int r = 0; r < std::min(kTogether, kRows - i); ++r) {
      float* to = sums + (i + r) * kMaxTileColumns;
      const auto now = hn::Load(d4, lanes + r * kGroup);
      hn::StoreU(first ? now : hn::Add(hn::LoadU(d4, to), now), d4, to);
    }
  }
}

// Rows of a in blocks of at most kTileRows, as even as can be: block `i` of `blocks` begins here.
inline int64_t BlockBegin(int64_t m, int64_t i) {
  const int64_t blocks = (m + kTileRows - 1) / kTileRows;
  return m * i / blocks;
}

// a as the tiles read it, front to back: chunks of K; in a chunk blocks of rows; in a block kLanes
// elements of its first row, of its second, ..., the next kLanes elements, and so on. K is padded
// with zeros.
void PackRows(const MatMulArgs& args, int64_t offset, int64_t begin, int64_t end, float* packed) {
  const int64_t k = args.k(), m = args.m(), chunk = ChunkOf(args), rows = end - begin;
  HWY_ALIGN float row[kMaxChunk];
  for (int64_t k0 = 0; k0 < k; k0 += chunk) {
    const int64_t count = std::min(chunk, k - k0), padded = RoundUp(count, kLanes);
    float* to = packed + k0 * m + begin * padded;
    for (int64_t i = 0; i < rows; ++i) {
      WidenViewRow(args.a, offset + args.a.stride(-2) * (begin + i) + args.a.stride(-1) * k0,
                   args.a.stride(-1), count, row);
      std::fill(row + count, row + padded, 0.0f);
      for (int64_t j = 0; j < padded; j += kLanes) {
        StoreFloats(LoadFloats(row + j), to + j * rows + i * kLanes);
      }
    }
  }
}

template <typename T>
HWY_INLINE void MultiplyRows(int64_t rows, const float* a, const T* b, int64_t stride,
                             int64_t count, bool first, const Ahead& ahead, float* sums) {
  switch (rows) {
    case 1:
      return MultiplyTile<1, T>(a, b, stride, count, first, ahead, sums);
    case 2:
      return MultiplyTile<2, T>(a, b, stride, count, first, ahead, sums);
    case 3:
      return MultiplyTile<3, T>(a, b, stride, count, first, ahead, sums);
#if HWY_TARGET == HWY_AVX3
    case 4:
      return MultiplyTile<4, T>(a, b, stride, count, first, ahead, sums);
    case 5:
      return MultiplyTile<5, T>(a, b, stride, count, first, ahead, sums);
    default:
      return MultiplyTile<6, T>(a, b, stride, count, first, ahead, sums);
#else
    default:
      return;
#endif
  }
}

// sums[i][j] = dot(a row i, b row j) for all M rows of packed a and `columns` rows of b, `stride`
// elements (blocks) apart; b has rows_to_end rows.
template <typename T>
void Strip(const MatMulArgs& args, const float* packed, const T* b, int64_t stride, int64_t columns,
           int64_t rows_to_end, float* sums) {
  constexpr int64_t kLength = [] {
    if constexpr (kIsBlock<T>) {
      return static_cast<int64_t>(T::kLength);
    } else {
      return int64_t{1};
    }
  }();
  const int64_t m = args.m(), k = args.k(), chunk = ChunkOf(args);
  const int64_t blocks = (m + kTileRows - 1) / kTileRows;
  const int64_t rows_ahead = std::max<int64_t>(1, (kGroup + blocks - 1) / blocks);
  HWY_ALIGN float widened[kGroup * kMaxChunk];
  for (int64_t k0 = 0; k0 < k; k0 += chunk) {
    const int64_t count = std::min(chunk, k - k0), padded = RoundUp(count, kLanes);
    const bool direct = !kIsBlock<T> && count == padded;
    for (int64_t j = 0; j < columns; j += kGroup) {
      const T* group = b + j * stride + k0 / kLength;
      const int64_t present = std::min<int64_t>(kGroup, columns - j);
      if (!direct || present < kGroup) {
        for (int64_t r = 0; r < kGroup; ++r) {
          float* to = widened + r * kMaxChunk;
          if (r < present) WidenRow(group + r * stride, count, to);
          std::fill(to + (r < present ? count : 0), to + padded, 0.0f);
        }
      }
      // The next group: of this chunk, of the next chunk, or of the next strip.
      int64_t next = j + kGroup, next_k = k0;
      if (next >= columns && k0 + chunk < k) {
        next = 0;
        next_k = k0 + chunk;
      } else if (next >= columns) {
        next_k = 0;
      }
      int64_t wanted = std::clamp<int64_t>(rows_to_end - next, 0, kGroup);
      const T* next_row = b + std::min(next, rows_to_end - 1) * stride + next_k / kLength;
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t begin = BlockBegin(m, i), rows = BlockBegin(m, i + 1) - begin;
        // Nothing more wanted: the tile asks for what it has.
        const auto* here = reinterpret_cast<const char*>(group);
        Ahead ahead = {{here, here}, 0, kSection<T>};
        if (wanted > 0) {
          ahead.step = (kSection<T> * static_cast<int64_t>(sizeof(T)) + kLength - 1) / kLength;
          ahead.row[0] = reinterpret_cast<const char*>(next_row);
          ahead.row[1] = rows_ahead > 1 && wanted > 1
                             ? reinterpret_cast<const char*>(next_row + stride)
                             : ahead.row[0];
          next_row += std::min(rows_ahead, wanted) * stride;
          wanted -= rows_ahead;
        }
        float* to = sums + begin * kMaxTileColumns + j;
        const float* a = packed + k0 * m + begin * padded;
        if constexpr (!kIsBlock<T>) {
          if (direct && present == kGroup) {
            MultiplyRows<T>(rows, a, group, stride, padded, k0 == 0, ahead, to);
            continue;
          }
        }
        MultiplyRows<float>(rows, a, widened, kMaxChunk, padded, k0 == 0, ahead, to);
      }
    }
  }
}

struct RowsScratch {
  float* a = nullptr;     // [batches of a][M * padded K]
  float* sums = nullptr;  // [workers][M][kMaxTileColumns]
};
inline RowsScratch CarveRows(Workspace& workspace, const MatMulArgs& args, int workers) {
  const int64_t batches = args.a.rank() == 3 ? args.a.dim(0) : 1;
  return {workspace.Take<float>(batches * args.m() * RoundUp(args.k(), kLanes)),
          workspace.Take<float>(workers * args.m() * kMaxTileColumns)};
}

absl::Status RowsRun(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  const int64_t m = args.m(), n = args.n(), k = args.k();
  ThreadPool& pool = CpuStream::Of(context).pool();
  const RowsScratch scratch = CarveRows(*context.workspace, args, pool.size());
  if (!context.workspace->ok()) return absl::InternalError("matmul rows: workspace too small");
  const MatMulOperands operands(args);
  const int64_t a_batches = args.a.rank() == 3 ? args.a.dim(0) : 1;
  const int64_t a_batch = m * RoundUp(k, kLanes), blocks = (m + kTileRows - 1) / kTileRows;
  pool.ParallelFor(
      a_batches * blocks,
      [&](int64_t task, int) HWY_ATTR {
        const int64_t z = task / blocks, i = task % blocks;
        PackRows(args, operands.a_batch * z, BlockBegin(m, i), BlockBegin(m, i + 1),
                 scratch.a + z * a_batch);
      },
      a_batches * a_batch * static_cast<int64_t>(sizeof(float)));

  // Strips of 64; of 16 for matrices so small that there would be less than 32.
  const int64_t strip = n * args.batch() >= 32 * kMaxTileColumns ? kMaxTileColumns : 16;
  const int64_t strips = (n + strip - 1) / strip;
  pool.ParallelFor(args.batch() * strips, [&](int64_t task, int worker) HWY_ATTR {
    const int64_t z = task / strips, n0 = task % strips * strip;
    const int64_t columns = std::min(strip, n - n0);
    float* sums = scratch.sums + worker * m * kMaxTileColumns;
    if (k == 0) std::fill_n(sums, m * kMaxTileColumns, 0.0f);
    const float* a = scratch.a + (a_batches > 1 ? z * a_batch : 0);
    DispatchWeight(args.b.dtype, [&]<typename T>() HWY_ATTR {
      // Strides of block types count elements.
      const int64_t block = BlockLength(args.b.dtype);
      const int64_t stride = args.b.stride(-2) / block;
      const T* b = args.b.As<T>() + operands.b_batch * z / block + n0 * stride;
      Strip<T>(args, a, b, stride, columns, n - n0, sums);
    });
    FinishTile(args, operands, z, 0, m, n0, columns, sums, kMaxTileColumns);
  });
  return absl::OkStatus();
}

int64_t RowsWorkspace(const KernelContext& context, const MatMulArgs& args) {
  Workspace counting = Workspace::Counting();
  CarveRows(counting, args, CpuStream::Of(context).pool().size());
  return counting.bytes_used();
}

#endif  // HWY_TARGET
}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

constexpr int64_t kMaxRows = 256;

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  if (args.m() > kMaxRows) {
    return Unimplemented("takes up to ", kMaxRows, " rows, got ", args.m());
  }
  if (!args.b.present()) return Unimplemented("reads b itself; only b_packed was given");
  if (args.b.stride(-1) != 1 && args.k() > 1) {
    return Unimplemented("needs b with contiguous rows, got stride ", args.b.stride(-1));
  }
  return CheckIsa(context, kIsa);
}

}  // namespace

Kernel<MatMulArgs> RowsMatMul(Isa isa) {
  if (isa == Isa::kAvx512) {
    return {"rows_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, N_AVX3::RowsWorkspace,
            N_AVX3::RowsRun};
  }
  return {"rows_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, N_AVX2::RowsWorkspace,
          N_AVX2::RowsRun};
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
