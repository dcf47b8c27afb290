// Block-quantised weights as f32 or bf16, for a library to multiply.
//
// A warp does 1024 elements of a row at a time, a lane 32 of them: they are copied in stored form
// to shared memory, whatever their alignment, and written as 64 or 128 bytes per lane. Memory
// bounds it: 2 or 4 bytes written per element beside the 0.26 to 1.06 read.
#include "cuda/device/block_formats.h"
#include "cuda/device/convert.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/math.h"
#include "cuda/device/memory.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/device/weight_pieces.h"
#include "cuda/kernels/matmul_int8.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// Four elements: `half` is the half of the sub-block that they are in. One rounding, as
// core/block_elements.h.
template <typename Format>
__device__ __forceinline__ void ToFloats(uint32_t quants, const SubBlockScales& scales, int half,
                                         float (&x)[4]) {
  const float scale =
      Format::kHalves ? scales.scale * static_cast<float>(scales.half[half]) : scales.scale;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto byte = static_cast<uint8_t>(quants >> (8 * i));
    const int q = Format::kSigned ? static_cast<int8_t>(byte) : byte;
    x[i] = scale * static_cast<float>(q - Format::kOffset);
    if constexpr (Format::kMinimum) x[i] -= scales.min;
  }
}

template <typename Block>
__global__ void __launch_bounds__(kExpandWarps* kWarpSize) ExpandKernel(const ExpandParams p) {
  using Format = BlockFormat<Block>;
  SharedCarver shared;
  uint8_t* slot = CarveExpand<Block>(shared) + WarpId() * kInt8PieceStride<Block>;
  for (int64_t n = blockIdx.x; n < p.rows; n += gridDim.x) {
    const uint8_t* row = p.weights + n * p.row_bytes;
    for (int64_t piece = int64_t{blockIdx.y} * kExpandWarps + WarpId();
         piece * kWarpSize < p.blocks; piece += int64_t{gridDim.y} * kExpandWarps) {
      const int64_t begin = piece * kInt8PieceBytes<Block>, left = p.used_bytes - begin;
      CopyPiece<Block>(row + begin, left < INT32_MAX ? static_cast<int>(left) : INT32_MAX, slot);
      CopyAsyncCommit();
      CopyAsyncWait<0>();
      SyncWarp();
      const int64_t b = piece * kWarpSize + LaneId();
      if (b < p.blocks) {
        const LaneSubBlock at = SubBlockOfLane<Block>(row + begin, slot);
        const SubBlockScales scales = Format::Scales(at.block, at.sub);
        const typename Format::Words words = Format::Open(at.block);
        const int64_t to = n * p.out.strides[0] + b * kInt8Block;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t quants[2];
          Format::Pair(words, at.sub, j, quants[0], quants[1]);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float x[4];
            ToFloats<Format>(quants[half], scales, half, x);
            const int64_t element = to + 16 * half + 4 * j;
            if (p.out.dtype == DType::kF32) {
              StorePacked(
                  p.out.As<float>() + element,
                  Packed<16>{{std::bit_cast<uint32_t>(x[0]), std::bit_cast<uint32_t>(x[1]),
                              std::bit_cast<uint32_t>(x[2]), std::bit_cast<uint32_t>(x[3])}});
            } else {
              StorePacked(p.out.As<BF16>() + element,
                          Packed<8>{{PackBF16(x[0], x[1]), PackBF16(x[2], x[3])}});
            }
          }
        }
      }
      SyncWarp();  // the slot may be filled again
    }
  }
}

}  // namespace

KernelFunction ExpandFunction(DType weights) {
  return DispatchBlock(weights, [&]<typename Block>() {
    return MakeKernelFunction<&ExpandKernel<Block>>("expand");
  });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
