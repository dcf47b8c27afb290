// Quantisation to GGUF's formats of 256 elements, with the bytes of its reference quantisers
// (quantize_row_*_ref): f32 throughout, sums in order of the elements, nothing fused. Any strides
// and float types of x.
//
// q4_k, q5_k, q6_k: a lane fits one sub-block, so that its sums keep their order: 8 lanes per block
// of q4_k and q5_k, 16 of q6_k; what a block has in common is found by shuffles. The elements lie
// in shared memory, one sub-block per lane, an odd number of words apart: lanes read different
// banks. tq2_0: a warp per block, 8 elements per lane.
//
// Bound by arithmetic: some 20 roundings of every element are tried.
#include <bit>

#include "core/sub_block_fit.h"
#include "cuda/device/math.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/quantize_k.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// Elements of a sub-block.
template <typename Block>
inline constexpr int kSubBlockOf = kSubBlock;
template <>
inline constexpr int kSubBlockOf<BlockQ6_K> = kQ6SubBlock;
template <typename Block>
inline constexpr int kLanes = Block::kLength / kSubBlockOf<Block>;  // per block

// ---- q4_k, q5_k: x ~ scale * q - min

// Largest of eight lanes and of 0; NaN does not count.
__device__ float LargestOfEight(float x) {
  float largest = x > 0.0f ? x : 0.0f;
#pragma unroll
  for (int step = 1; step < 8; step *= 2) {
    const float other = ShuffleXor(largest, step);
    largest = other > largest ? other : largest;
  }
  return largest;
}

// Negative scales (a fit may have one) wrap around to something above 63.
__device__ int SixBits(float x) {
  const int wrapped = NearestInteger(x) & 255;
  return wrapped < 63 ? wrapped : 63;
}

__device__ void PackQuants(const uint8_t* q, int s, BlockQ4_K& block) {
  constexpr int kShare = BlockQ4_K::kLength / 2 / 8;  // bytes per lane
  for (int i = s * kShare; i < (s + 1) * kShare; ++i) {
    const uint8_t* pair = q + i / 32 * 64 + i % 32;
    block.q[i] = static_cast<uint8_t>(pair[0] | pair[32] << 4);
  }
}
__device__ void PackQuants(const uint8_t* q, int s, BlockQ5_K& block) {
  constexpr int kShare = BlockQ5_K::kLength / 2 / 8;
  for (int i = s * kShare; i < (s + 1) * kShare; ++i) {
    const uint8_t* pair = q + i / 32 * 64 + i % 32;
    block.q[i] = static_cast<uint8_t>((pair[0] & 15) | (pair[32] & 15) << 4);
  }
  for (int i = s * 4; i < (s + 1) * 4; ++i) {
    int bits = 0;
    for (int t = 0; t < 8; ++t) bits |= q[t * 32 + i] >> 4 << t;
    block.high[i] = static_cast<uint8_t>(bits);
  }
}

// Sub-block s of a block: its elements are x, the whole block's quants go to q. `real`: there is
// such a block; the lanes of a warp call it together.
template <typename Block>
__device__ void QuantizeSubBlock(const float* x, int s, bool real, uint8_t* q, Block& block) {
  constexpr int kCount = kSubBlock;
  const ScaleMinFit fit = FitScaleMin<Block>(x);
  const float max_scale = LargestOfEight(fit.scale), max_min = LargestOfEight(fit.min);
  const float inverse_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f;
  const float inverse_min = max_min > 0.0f ? 63.0f / max_min : 0.0f;
  const F16 d = ToF16(max_scale / 63.0f), dmin = ToF16(max_min / 63.0f);
  const int packed_scale = SixBits(inverse_scale * fit.scale);
  const int packed_min = SixBits(inverse_min * fit.min);
  const int upper_scale = ShuffleXor(packed_scale, 4), upper_min = ShuffleXor(packed_min, 4);
  if (real && s < 4) {
    block.scales[s] = static_cast<uint8_t>(packed_scale | upper_scale >> 4 << 6);
    block.scales[s + 4] = static_cast<uint8_t>(packed_min | upper_min >> 4 << 6);
    block.scales[s + 8] = static_cast<uint8_t>((upper_scale & 15) | (upper_min & 15) << 4);
  }
  if (real && s == 0) {
    block.d = d;
    block.dmin = dmin;
  }
  const float scale = ToFloat(d) * static_cast<float>(packed_scale);
  const float min = ToFloat(dmin) * static_cast<float>(packed_min);
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) {
    // A scale of zero leaves the quants of the fit, which then mean nothing.
    const float level = scale != 0.0f ? (x[i] + min) / scale : fit.inverse * (x[i] - fit.low);
    q[s * kCount + i] = static_cast<uint8_t>(
        ClampInteger(NearestInteger(level), 0, ScaleMinTraits<Block>::kMaxQuant));
  }
  SyncWarp();
  if (real) PackQuants(q, s, block);
}

// ---- q6_k: x ~ scale * (q - 32)

// The value of largest magnitude among 16 lanes, the first of equals; NaN does not count.
__device__ float ExtremeOfSixteen(float x) {
  const int lane = LaneId() % 16;
  const uint32_t magnitude = IsNaN(x) ? 0u : std::bit_cast<uint32_t>(Abs(x));
  uint64_t key = uint64_t{magnitude} << 32 | static_cast<uint32_t>(15 - lane);
#pragma unroll
  for (int step = 1; step < 16; step *= 2) {
    const uint64_t other = ShuffleXor(key, step);
    key = other > key ? other : key;
  }
  const float found = Shuffle(x, LaneId() / 16 * 16 + 15 - static_cast<int>(key & 15));
  return key >> 32 ? found : 0.0f;
}

__device__ void QuantizeSubBlock(const float* x, int s, bool real, uint8_t* q, BlockQ6_K& block) {
  constexpr int kCount = kQ6SubBlock;
  const ScaleFit fit = FitScale(x);
  const float extreme = ExtremeOfSixteen(fit.scale);
  const bool zero = Abs(extreme) < kZeroBelow;  // all bytes are
  const float inverse = zero ? 0.0f : -128.0f / extreme;
  const F16 d = zero ? F16{0} : ToF16(1.0f / inverse);
  const int level_scale = NearestInteger(inverse * fit.scale);
  const auto packed = static_cast<int8_t>(zero ? 0 : level_scale < 127 ? level_scale : 127);
  if (real) block.scales[s] = packed;
  if (real && s == 0) block.d = d;
  const float scale = ToFloat(d) * static_cast<float>(packed);
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) {
    // A sub-block of zeros has quants 0; with a scale of zero they mean nothing.
    const float level = scale != 0.0f ? x[i] / scale : fit.inverse * x[i];
    const bool nothing = zero || (fit.inverse == 0.0f && scale == 0.0f);
    q[s * kCount + i] =
        static_cast<uint8_t>(nothing ? 0 : ClampInteger(NearestInteger(level), -32, 31) + 32);
  }
  SyncWarp();
  if (!real) return;
  for (int i = s * 8; i < (s + 1) * 8; ++i) {  // bytes of low
    const uint8_t* pair = q + i / 64 * 128 + i % 64;
    block.low[i] = static_cast<uint8_t>((pair[0] & 15) | (pair[64] & 15) << 4);
  }
  for (int i = s * 4; i < (s + 1) * 4; ++i) {
    const uint8_t* four = q + i / 32 * 128 + i % 32;
    block.high[i] = static_cast<uint8_t>(four[0] >> 4 | four[32] >> 4 << 2 | four[64] >> 4 << 4 |
                                         four[96] >> 4 << 6);
  }
}

template <typename Block>
__global__ void __launch_bounds__(kQuantizeKThreads) QuantizeKKernel(const CastParams p) {
  constexpr int kElements = kSubBlockOf<Block>, kBlocks = kWarpSize / kLanes<Block>;
  constexpr int kWarps = kQuantizeKThreads / kWarpSize;
  SharedCarver carver;
  const QuantizeKShared shared = CarveQuantizeK(carver);
  float* x = shared.x + WarpId() * kQuantizeKWarpFloats;
  uint8_t* q = shared.q + WarpId() * kQuantizeKWarpQuants;
  const int s = LaneId() % kLanes<Block>, own = LaneId() / kLanes<Block>;
  const Divisor per_row(p.columns / Block::kLength);
  const int64_t blocks = p.rows * (p.columns / Block::kLength);
  for (int64_t first = (int64_t{blockIdx.x} * kWarps + WarpId()) * kBlocks; first < blocks;
       first += int64_t{gridDim.x} * kWarps * kBlocks) {
#pragma unroll 1
    for (int b = 0; b < kBlocks; ++b) {
      const bool there = first + b < blocks;
      const Divisor::Result at = per_row.Divide(there ? first + b : first);
      const int64_t row = at.quotient * p.x.strides[0];
#pragma unroll 1
      for (int i = LaneId(); i < Block::kLength; i += kWarpSize) {
        const int64_t n = at.remainder * Block::kLength + i;
        x[(b * kLanes<Block> + i / kElements) * (kElements + 1) + i % kElements] =
            there ? p.x.As<const float>()[row + n * p.x.strides[1]] : 0.0f;
      }
    }
    SyncWarp();
    const bool real = first + own < blocks;
    const Divisor::Result at = per_row.Divide(real ? first + own : first);
    Block& block =
        p.out.As<Block>()[at.quotient * p.out.strides[0] / Block::kLength + at.remainder];
    QuantizeSubBlock(x + LaneId() * (kElements + 1), s, real, q + own * Block::kLength, block);
    SyncWarp();
  }
}

// ---- tq2_0: x = d * (q - 1)

__global__ void __launch_bounds__(kQuantizeKThreads) QuantizeTernaryKernel(const CastParams p) {
  constexpr int kWarps = kQuantizeKThreads / kWarpSize, kLength = BlockTQ2_0::kLength;
  const Divisor per_row(p.columns / kLength);
  const int64_t blocks = p.rows * (p.columns / kLength);
  for (int64_t i = int64_t{blockIdx.x} * kWarps + WarpId(); i < blocks;
       i += int64_t{gridDim.x} * kWarps) {
    const Divisor::Result at = per_row.Divide(i);
    const int64_t row = at.quotient * p.x.strides[0];
    float x[2][4];  // what the lane's two bytes hold
    float largest = 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int64_t n = at.remainder * kLength + h * 128 + part * 32 + LaneId();
        x[h][part] = p.x.As<const float>()[row + n * p.x.strides[1]];
        largest = Abs(x[h][part]) > largest ? Abs(x[h][part]) : largest;
      }
    }
    largest = WarpReduce(largest, [](float a, float b) { return a > b ? a : b; });
    const float inverse = largest != 0.0f ? 1.0f / largest : 0.0f;
    BlockTQ2_0& block =
        p.out.As<BlockTQ2_0>()[at.quotient * p.out.strides[0] / kLength + at.remainder];
    if (LaneId() == 0) block.d = ToF16(largest);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int bits = 0;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float v = x[h][part] * inverse;
        // Rounded half away from zero; NaN counts as 0.
        bits |= (v >= 0.5f ? 2 : v <= -0.5f ? 0 : 1) << (2 * part);
      }
      block.q[h * 32 + LaneId()] = static_cast<uint8_t>(bits);
    }
  }
}

}  // namespace

KernelFunction QuantizeKFunction(DType out) {
  switch (out) {
    case DType::kQ4_K:
      return MakeKernelFunction<&QuantizeKKernel<BlockQ4_K>>("quantize_q4_k");
    case DType::kQ5_K:
      return MakeKernelFunction<&QuantizeKKernel<BlockQ5_K>>("quantize_q5_k");
    case DType::kQ6_K:
      return MakeKernelFunction<&QuantizeKKernel<BlockQ6_K>>("quantize_q6_k");
    default:
      return MakeKernelFunction<&QuantizeTernaryKernel>("quantize_tq2_0");
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
