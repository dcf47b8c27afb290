// One warp does 1, 2 or 4 rows of weights (columns of out) at a time, a lane 8 elements of K at a
// time: 16 bytes of 16-bit weights, of which four loads (eight of f32) are under way before the
// first is waited for. Weights are read once and not kept in caches; a is converted to f32 as it is
// loaded, mostly from L1, and nothing is rounded. A lane adds its elements in order, then the lanes
// are added as a tree.
//
// With a gate a warp does the same rows of up next and joins them in registers. Included by the
// sources that instantiate it.
#pragma once

#include "cuda/device/chunk.h"
#include "cuda/device/math.h"
#include "cuda/device/matmul_group.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul_gemv.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
template <typename W>
__device__ __forceinline__ RawChunk LoadWeights(const DeviceTensor& b, int64_t row,
                                                ChunkPlace place) {
  if constexpr (std::is_same_v<W, float>) {
    return LoadRawF32<CacheHint::kStreaming>(b, row, place);
  } else {
    return {LoadRaw16<CacheHint::kStreaming>(b, row, place), {}};
  }
}

// kRows of a at most, kTogether rows of weights, kAhead chunks of each under way.
template <typename W, int kRows, typename Params>
__global__ void __launch_bounds__(kGemvVectorWarps* kWarpSize,
                                  kRows == 8 || (kRows == 4 && MatMulWork<Params>::kGroup) ? 1 : 2)
    GemvVectorKernel(const Params params) {
  constexpr int kTogether = GemvVectorTogether(kRows), kAhead = 4 / kTogether;
  constexpr DType kDType = DTypeOf<W>::value;
  constexpr bool kFours = std::is_same_v<W, float>;
  using Work = MatMulWork<Params>;
  const BlockShare share = Work::Share(params);
  const MatMulParams& p = Work::Of(params, share.product);
  const int64_t chunks = p.k / kChunk;
  const int64_t warps = share.blocks * kGemvVectorWarps;
  for (int64_t z = blockIdx.y; z < p.batch; z += gridDim.y) {
    // Neighbouring rows go to different multiprocessors: each has as many to do.
    for (int64_t n0 = (int64_t{WarpId()} * share.blocks + share.block) * kTogether; n0 < p.n;
         n0 += warps * kTogether) {
      // Lane m * kTogether + r ends element (m, n0 + r).
      const int own_m = LaneId() / kTogether;
      const int64_t own_n = n0 + LaneId() % kTogether;
      const bool ends = LaneId() < kRows * kTogether && own_m < p.m && own_n < p.n;
      float gate = 0.0f;
      for (int side = 0; side < (Work::Gated(params) ? 2 : 1); ++side) {
        const DeviceTensor& b = Work::Of(params, share.product + side).b;
        int64_t rows[kTogether];
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {  // beyond the last: the last once more
          const int64_t n = n0 + r < p.n ? n0 + r : p.n - 1;
          rows[r] = z * b.strides[0] + n * b.strides[1];
        }
        float sums[kRows][kTogether] = {};
        for (int64_t first = LaneId(); first < chunks; first += kAhead * kWarpSize) {
          RawChunk raw[kAhead][kTogether];
#pragma unroll
          for (int u = 0; u < kAhead; ++u) {
            const int64_t chunk = first + u * kWarpSize;
            if (chunk >= chunks) break;
#pragma unroll
            for (int r = 0; r < kTogether; ++r) {
              raw[u][r] = LoadWeights<W>(b, rows[r], PlaceOf(chunk, p.k, kFours));
            }
          }
#pragma unroll
          for (int u = 0; u < kAhead; ++u) {
            const int64_t chunk = first + u * kWarpSize;
            if (chunk >= chunks) break;
            Chunk w[kTogether];
#pragma unroll
            for (int r = 0; r < kTogether; ++r) w[r] = ToFloats(raw[u][r], kDType);
#pragma unroll
            for (int m = 0; m < kRows; ++m) {
              const int64_t row = m < p.m ? m : p.m - 1;
              const Chunk a = LoadChunk<CacheHint::kReadOnly>(
                  p.a, z * p.a.strides[0] + row * p.a.strides[1], PlaceOf(chunk, p.k, kFours));
#pragma unroll
              for (int r = 0; r < kTogether; ++r) {
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                  sums[m][r] = MultiplyAdd(a.x[i], w[r].x[i], sums[m][r]);
                }
              }
            }
          }
        }
        float mine = 0.0f;
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
#pragma unroll
          for (int r = 0; r < kTogether; ++r) {
            const float sum = WarpSum(sums[m][r]);
            if (LaneId() == m * kTogether + r) mine = sum;
          }
        }
        if constexpr (Work::kGroup) {
          if (Work::Gated(params)) {
            if (side == 1 && ends) FinishGatedProduct(params, own_m, own_n, gate, mine);
            gate = mine;
            continue;
          }
        }
        if (ends) FinishProduct(p, z, own_m, own_n, mine);
      }
    }
  }
}

template <typename W, typename Params>
KernelFunction GemvVectorOfRows(int rows) {
  switch (rows) {
    case 1:
      return MakeKernelFunction<&GemvVectorKernel<W, 1, Params>>("gemv_vector");
    case 2:
      return MakeKernelFunction<&GemvVectorKernel<W, 2, Params>>("gemv_vector");
    case 4:
      return MakeKernelFunction<&GemvVectorKernel<W, 4, Params>>("gemv_vector");
    default:
      return MakeKernelFunction<&GemvVectorKernel<W, 8, Params>>("gemv_vector");
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
