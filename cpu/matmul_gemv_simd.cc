// Matrix-vector product and its neighbours (M <= 8), as decoding does: limited by reading b once.
//
// Algorithm: dot products of stored weight rows with f32 activations. Weights are widened (or, for
// q8_0 and q4_0, scaled) in registers and multiplied in f32, so the only error beside rounding is
// the format's own: the activations are not quantised. Integer dot products (vpdpbusd on quantised
// activations, as ggml does) would be needed only if the f32 arithmetic were slower than memory; it
// is not, see bench/matmul_bench.cc.
// Mapping: one task per strip of kStrip output features, whatever the thread count. Inside, kRows
// weight rows at a time are streamed once for all M activation rows; each (row, m) pair has its own
// accumulator. While a group of rows is multiplied the next group is prefetched line by line: rows
// are too short (2 to 8 KiB) for the hardware's prefetchers to get going, and q8_0 from DRAM
// reached 7 GB/s a core without it, 36 with it (Zen 5, K = 2048). Memory: each byte of b is read
// once; the activations (M * K f32) stay in L1 or L2. Range: M <= 8, b in stored form (K
// contiguous), any float or block dtype, any N, K and batch.
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
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

constexpr int64_t kStrip = 64;  // output features per task

// sums[r * kM + m] = dot(weight row r, activation row m), for kRows rows of plain floats. The rows
// `ahead` elements (blocks) further on are prefetched.
template <typename T, int kRows, int kM>
HWY_INLINE void DotRows(const T* const* w, const float* x, int64_t x_stride, int64_t k,
                        int64_t ahead, FloatVector* sums) {
  const FloatTag d;
  FloatVector sum[kRows * kM];
  for (int i = 0; i < kRows * kM; ++i) sum[i] = hn::Zero(d);
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    FloatVector weight[kRows];
    for (int r = 0; r < kRows; ++r) {
      weight[r] = LoadFloats(w[r] + i);
      __builtin_prefetch(w[r] + ahead + i, 0, 2);
    }
    for (int m = 0; m < kM; ++m) {
      const auto activation = LoadFloats(x + m * x_stride + i);
      for (int r = 0; r < kRows; ++r) {
        sum[r * kM + m] = hn::MulAdd(weight[r], activation, sum[r * kM + m]);
      }
    }
  }
  for (int j = 0; j < kRows * kM; ++j) sums[j] = hn::SumOfLanes(d, sum[j]);
  for (; i < k; ++i) {
    for (int r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(d, ToFloat(w[r][i]));
      for (int m = 0; m < kM; ++m) {
        sums[r * kM + m] = hn::MulAdd(weight, hn::Set(d, x[m * x_stride + i]), sums[r * kM + m]);
      }
    }
  }
}

// The same for rows of quantised blocks.
template <typename Block, int kRows, int kM>
HWY_INLINE void DotBlockRows(const Block* const* w, const float* x, int64_t x_stride, int64_t k,
                             int64_t ahead, FloatVector* sums) {
  const FloatTag d;
  FloatVector sum[kRows * kM];
  for (int i = 0; i < kRows * kM; ++i) sum[i] = hn::Zero(d);
  for (int64_t b = 0; b < k / Block::kLength; ++b) {
    const float* block_x = x + b * Block::kLength;
    FloatVector scale[kRows];
    for (int r = 0; r < kRows; ++r) {
      scale[r] = LoadScale(w[r][b].d);
      __builtin_prefetch(w[r] + ahead + b, 0, 2);
    }
    if constexpr (kM == 1) {
      // One activation row: scaling the block's sum is cheaper than scaling its weights.
      for (int r = 0; r < kRows; ++r) {
        auto partial = hn::Mul(LoadQuants(w[r][b], 0), LoadFloats(block_x));
        for (int64_t i = kLanes; i < Block::kLength; i += kLanes) {
          partial = hn::MulAdd(LoadQuants(w[r][b], i), LoadFloats(block_x + i), partial);
        }
        sum[r] = hn::MulAdd(scale[r], partial, sum[r]);
      }
    } else {
      for (int64_t i = 0; i < Block::kLength; i += kLanes) {
        FloatVector weight[kRows];
        for (int r = 0; r < kRows; ++r) weight[r] = hn::Mul(scale[r], LoadQuants(w[r][b], i));
        for (int m = 0; m < kM; ++m) {
          const auto activation = LoadFloats(block_x + m * x_stride + i);
          for (int r = 0; r < kRows; ++r) {
            sum[r * kM + m] = hn::MulAdd(weight[r], activation, sum[r * kM + m]);
          }
        }
      }
    }
  }
  for (int j = 0; j < kRows * kM; ++j) sums[j] = hn::SumOfLanes(d, sum[j]);
}

// Output features [n0, n0 + columns) of kM activation rows, into tile[m][kMaxTileColumns].
template <typename T, int kM>
HWY_NOINLINE void Strip(const T* b, int64_t b_stride, const float* x, int64_t x_stride,
                        int64_t columns, int64_t k, float* tile) {
  // Accumulators fit the registers (16 with AVX2, 32 with AVX-512) beside weights and activations.
  constexpr int kRows = kLanes >= 16 ? (kM <= 4 ? 4 : 3) : (kM <= 2 ? 4 : (kM <= 4 ? 2 : 1));
  const auto dot = [&]<int kCount>(int64_t n) HWY_ATTR {
    const T* rows[kCount];
    for (int r = 0; r < kCount; ++r) rows[r] = b + (n + r) * b_stride;
    // The last rows of a strip fetch nothing ahead: what follows is another task's.
    const int64_t ahead = n + 2 * kCount <= columns ? kCount * b_stride : 0;
    FloatVector sums[kCount * kM];
    if constexpr (std::is_same_v<T, BlockQ8_0> || std::is_same_v<T, BlockQ4_0>) {
      DotBlockRows<T, kCount, kM>(rows, x, x_stride, k, ahead, sums);
    } else {
      DotRows<T, kCount, kM>(rows, x, x_stride, k, ahead, sums);
    }
    for (int r = 0; r < kCount; ++r) {
      for (int m = 0; m < kM; ++m) {
        tile[m * kMaxTileColumns + n + r] = hn::GetLane(sums[r * kM + m]);
      }
    }
  };
  int64_t n = 0;
  for (; n + kRows <= columns; n += kRows) dot.template operator()<kRows>(n);
  for (; n < columns; ++n) dot.template operator()<1>(n);
}

// M rounded up to what Strip is compiled for; the rows in between are zeros.
inline int64_t PaddedRows(int64_t m) { return m <= 1 ? 1 : (m <= 2 ? 2 : (m <= 4 ? 4 : 8)); }

// f32 rows with K contiguous and no row missing are used where they lie.
inline bool UsesActivationsInPlace(const MatMulArgs& args) {
  return args.a.dtype == DType::kF32 && (args.a.stride(-1) == 1 || args.k() <= 1) &&
         PaddedRows(args.m()) == args.m();
}

inline float* CarveActivations(Workspace& workspace, const MatMulArgs& args) {
  if (UsesActivationsInPlace(args)) return nullptr;
  const int64_t batches = args.a.rank() == 3 ? args.a.dim(0) : 1;
  return workspace.Take<float>(batches * PaddedRows(args.m()) * args.k());
}

template <typename T>
absl::Status RunTyped(const KernelContext& context, const MatMulArgs& args) {
  const int64_t m = args.m(), n = args.n(), k = args.k();
  const int64_t padded = PaddedRows(m), strips = (n + kStrip - 1) / kStrip;
  const MatMulOperands operands(args);
  const int64_t a_batches = args.a.rank() == 3 ? args.a.dim(0) : 1;

  float* x = CarveActivations(*context.workspace, args);
  if (!context.workspace->ok()) return absl::InternalError("gemv: workspace too small");
  if (x != nullptr) {
    for (int64_t row = 0; row < a_batches * padded; ++row) {
      const int64_t z = row / padded, i = row % padded;
      if (i < m) {
        WidenViewRow(args.a, operands.a_batch * z + args.a.stride(-2) * i, args.a.stride(-1), k,
                     x + row * k);
      } else {
        std::fill_n(x + row * k, k, 0.0f);
      }
    }
  }
  const int64_t x_stride = x != nullptr ? k : args.a.stride(-2);
  const int64_t x_batch = x != nullptr ? (a_batches > 1 ? padded * k : 0) : operands.a_batch;
  const float* x_base = x != nullptr ? x : args.a.As<float>();

  const auto run = [&](int64_t task, int) HWY_ATTR {
    const int64_t z = task / strips, n0 = task % strips * kStrip;
    const int64_t columns = std::min(kStrip, n - n0);
    HWY_ALIGN float tile[8 * kMaxTileColumns];
    // Strides of block types count elements.
    const int64_t block = BlockLength(args.b.dtype);
    const int64_t b_stride = args.b.stride(-2) / block;
    const T* b = args.b.As<T>() + operands.b_batch * z / block + n0 * b_stride;
    const float* rows = x_base + x_batch * z;
    switch (padded) {
      case 1:
        Strip<T, 1>(b, b_stride, rows, x_stride, columns, k, tile);
        break;
      case 2:
        Strip<T, 2>(b, b_stride, rows, x_stride, columns, k, tile);
        break;
      case 4:
        Strip<T, 4>(b, b_stride, rows, x_stride, columns, k, tile);
        break;
      default:
        Strip<T, 8>(b, b_stride, rows, x_stride, columns, k, tile);
        break;
    }
    FinishTile(args, operands, z, 0, m, n0, columns, tile, kMaxTileColumns);
  };
  CpuStream::Of(context).pool().ParallelFor(args.batch() * strips, run);
  return absl::OkStatus();
}

absl::Status GemvRun(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  if (args.b.dtype == DType::kQ8_0) return RunTyped<BlockQ8_0>(context, args);
  if (args.b.dtype == DType::kQ4_0) return RunTyped<BlockQ4_0>(context, args);
  return DispatchFloat(args.b.dtype, [&]<typename T>() { return RunTyped<T>(context, args); });
}

int64_t GemvWorkspace(const KernelContext&, const MatMulArgs& args) {
  Workspace counting = Workspace::Counting();
  CarveActivations(counting, args);
  return counting.bytes_used();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  if (args.m() > 8) return Unimplemented("takes up to 8 rows, got ", args.m());
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

}  // namespace tandem::cpu
#endif  // HWY_ONCE
