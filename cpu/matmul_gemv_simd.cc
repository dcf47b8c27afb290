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
//   Floats of one row are requested for one use where that is fast (AMD): f16 with K = 5632 0.68 of
//   read bandwidth without, 0.86 with (its activations no longer fall out of L1), K = 2048 0.88 and
//   0.94.
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
#include "cpu/matmul_gemv_rows-inl.h"
#include "cpu/matmul_group.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

constexpr int64_t kStrip = 64;  // output features per task

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
                   int64_t columns, const float* x, bool prefetch_once, float* tile) {
  const int64_t n = args.n(), k = args.k();
  // Strides of block types count elements.
  const int64_t block = BlockLength(args.b.dtype);
  const int64_t b_stride = args.b.stride(-2) / block;
  const T* b = args.b.As<T>() + operands.b_batch * z / block + n0 * b_stride;
  switch (PaddedRows(args.m())) {
    case 1:
      if (!kIsBlock<T> && prefetch_once &&
          args.batch() * ByteOffset(args.b.dtype, n * k) >= kOnceBytes) {
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
  const bool prefetch_once = CpuStream::Of(context).features().fast_prefetch_once;
  const auto run = [&](int64_t task, int) HWY_ATTR {
    const GroupTasks::Place place = tasks.At(task);
    const MatMulArgs& args = group.products[place.product];
    const int64_t z = place.task / strips(args), n0 = place.task % strips(args) * kStrip;
    const int64_t columns = std::min(kStrip, args.n() - n0);
    const float* rows = a_batches > 1 ? x + x_batch * z : x;
    HWY_ALIGN float tiles[2][8 * kMaxTileColumns];
    const auto multiply = [&](const MatMulArgs& product, float* tile) {
      DispatchWeight(product.b.dtype, [&]<typename T>() {
        MultiplyStrip<T>(product, MatMulOperands(product), z, n0, columns, rows, prefetch_once,
                         tile);
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
