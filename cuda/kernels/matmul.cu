// Matrix products, generic: any strides, dtypes and block formats; K ascending in one f32
// accumulator per output (tile), or 32 of them that are added in a fixed order (gemv).
//
// tile: a block of 16 x 16 threads computes as many outputs, 32 elements of K at a time from shared
// memory, where quantised weights are expanded: every element is decoded once per 16 rows of out. a
// is read N/16 times, b M/16 times, mostly from the L2 cache.
//
// gemv: one warp per column of out and up to 4 rows; b is read once and decoded once, lanes read
// neighbouring elements.
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/matmul_epilogue.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void __launch_bounds__(kMatMulTile* kMatMulTile) MatMulTileKernel(const MatMulParams p) {
  constexpr int kRow = kMatMulTileK + 1;  // one more: columns of a tile lie in different banks
  SharedCarver shared;
  auto* tile_a = shared.Take<float>(kMatMulTile * kRow);
  auto* tile_b = shared.Take<float>(kMatMulTile * kRow);
  const int thread = static_cast<int>(threadIdx.x);
  const int column = thread % kMatMulTile, row = thread / kMatMulTile;
  const int64_t tiles_m = (p.m + kMatMulTile - 1) / kMatMulTile;
  const int64_t tiles_n = (p.n + kMatMulTile - 1) / kMatMulTile;
  for (int64_t tile = blockIdx.x; tile < p.batch * tiles_m * tiles_n; tile += gridDim.x) {
    const int64_t z = tile / (tiles_m * tiles_n);
    const int64_t m0 = tile / tiles_n % tiles_m * kMatMulTile, n0 = tile % tiles_n * kMatMulTile;
    float sum = 0.0f;
    for (int64_t k0 = 0; k0 < p.k; k0 += kMatMulTileK) {
      for (int i = thread; i < kMatMulTile * kMatMulTileK; i += kMatMulTile * kMatMulTile) {
        const int r = i / kMatMulTileK, c = i % kMatMulTileK;
        const int64_t k = k0 + c;
        const bool in_a = m0 + r < p.m && k < p.k, in_b = n0 + r < p.n && k < p.k;
        tile_a[r * kRow + c] =
            in_a ? LoadElement(p.a,
                               z * p.a.strides[0] + (m0 + r) * p.a.strides[1] + k * p.a.strides[2])
                 : 0.0f;
        tile_b[r * kRow + c] =
            in_b ? LoadElement(p.b,
                               z * p.b.strides[0] + (n0 + r) * p.b.strides[1] + k * p.b.strides[2])
                 : 0.0f;
      }
      SyncThreads();
      const int count = p.k - k0 < kMatMulTileK ? static_cast<int>(p.k - k0) : kMatMulTileK;
      for (int c = 0; c < count; ++c) {
        sum = MultiplyAdd(tile_a[row * kRow + c], tile_b[column * kRow + c], sum);
      }
      SyncThreads();
    }
    if (m0 + row < p.m && n0 + column < p.n) FinishProduct(p, z, m0 + row, n0 + column, sum);
  }
}

__global__ void __launch_bounds__(kGemvThreads) GemvKernel(const MatMulParams p) {
  const int64_t warps = int64_t{gridDim.x} * (kGemvThreads / kWarpSize);
  for (int64_t i = int64_t{blockIdx.x} * (kGemvThreads / kWarpSize) + WarpId(); i < p.batch * p.n;
       i += warps) {
    const int64_t z = i / p.n, n = i % p.n;
    float sums[kGemvMaxRows] = {};
    for (int64_t k = LaneId(); k < p.k; k += kWarpSize) {
      const float b =
          LoadElement(p.b, z * p.b.strides[0] + n * p.b.strides[1] + k * p.b.strides[2]);
#pragma unroll
      for (int m = 0; m < kGemvMaxRows; ++m) {
        if (m >= p.m) break;
        const float a =
            LoadElement(p.a, z * p.a.strides[0] + m * p.a.strides[1] + k * p.a.strides[2]);
        sums[m] = MultiplyAdd(a, b, sums[m]);
      }
    }
#pragma unroll
    for (int m = 0; m < kGemvMaxRows; ++m) {
      if (m >= p.m) break;
      const float sum = WarpSum(sums[m]);
      if (LaneId() == 0) FinishProduct(p, z, m, n, sum);
    }
  }
}

}  // namespace

KernelFunction MatMulTileFunction() { return MakeKernelFunction<&MatMulTileKernel>("matmul_tile"); }
KernelFunction GemvFunction() { return MakeKernelFunction<&GemvKernel>("gemv"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
