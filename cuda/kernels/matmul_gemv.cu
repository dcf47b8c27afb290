// One warp does 1, 2 or 4 rows of weights (columns of out) at a time, a lane 8 elements of K at a
// time: 16 bytes of 16-bit weights, of which four loads (eight of f32) are under way before the
// first is waited for. Weights are read once and not kept in caches; a is converted to f32 as it is
// loaded, mostly from L1, and nothing is rounded. A lane adds its elements in order, then the lanes
// are added as a tree.
#include "cuda/device/chunk.h"
#include "cuda/device/math.h"
#include "cuda/device/matmul_epilogue.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/matmul_gemv.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

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
template <typename W, int kRows>
__global__ void __launch_bounds__(kGemvVectorWarps* kWarpSize, kRows == 8 ? 1 : 2)
    GemvVectorKernel(const MatMulParams p) {
  constexpr int kTogether = GemvVectorTogether(kRows), kAhead = 4 / kTogether;
  constexpr DType kDType = DTypeOf<W>::value;
  constexpr bool kFours = std::is_same_v<W, float>;
  const int64_t chunks = p.k / kChunk;
  const int64_t warps = int64_t{gridDim.x} * kGemvVectorWarps;
  for (int64_t z = blockIdx.y; z < p.batch; z += gridDim.y) {
    // Neighbouring rows go to different multiprocessors: each has as many to do.
    for (int64_t n0 = (int64_t{WarpId()} * gridDim.x + blockIdx.x) * kTogether; n0 < p.n;
         n0 += warps * kTogether) {
      int64_t rows[kTogether];
#pragma unroll
      for (int r = 0; r < kTogether; ++r) {  // beyond the last: the last once more
        const int64_t n = n0 + r < p.n ? n0 + r : p.n - 1;
        rows[r] = z * p.b.strides[0] + n * p.b.strides[1];
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
            raw[u][r] = LoadWeights<W>(p.b, rows[r], PlaceOf(chunk, p.k, kFours));
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
      // Lane m * kTogether + r ends element (m, n0 + r).
      float mine = 0.0f;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
#pragma unroll
        for (int r = 0; r < kTogether; ++r) {
          const float sum = WarpSum(sums[m][r]);
          if (LaneId() == m * kTogether + r) mine = sum;
        }
      }
      const int m = LaneId() / kTogether;
      const int64_t n = n0 + LaneId() % kTogether;
      if (LaneId() < kRows * kTogether && m < p.m && n < p.n) FinishProduct(p, z, m, n, mine);
    }
  }
}

template <typename W>
KernelFunction OfRows(int rows) {
  switch (rows) {
    case 1:
      return MakeKernelFunction<&GemvVectorKernel<W, 1>>("gemv_vector");
    case 2:
      return MakeKernelFunction<&GemvVectorKernel<W, 2>>("gemv_vector");
    case 4:
      return MakeKernelFunction<&GemvVectorKernel<W, 4>>("gemv_vector");
    default:
      return MakeKernelFunction<&GemvVectorKernel<W, 8>>("gemv_vector");
  }
}

}  // namespace

KernelFunction GemvVectorFunction(DType weights, int rows) {
  return DispatchFloat(weights, [&]<typename W>() { return OfRows<W>(rows); });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
