// Rotation, embedding lookup and conversion, generic: any strides and dtypes, one element (or pair,
// or block of a quantised format) at a time in grid-stride loops.
//
// Quantisation: one warp per block, one lane per element; the bytes are those of GGUF's reference
// quantisers, as the maximum of a block does not depend on the order in which it is found.
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/quantize.h"
#include "cuda/device/rotation.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/lookup.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__device__ int64_t FirstIndex() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ int64_t IndexStep() { return int64_t{gridDim.x} * blockDim.x; }

__global__ void RopeKernel(const RopeParams p) {
  const int64_t pairs = p.rotation.pairs, columns = p.x.dims[3];
  const int64_t per_row = columns - pairs;  // pairs, then the elements that are copied
  const int64_t rows = p.x.dims[0] * p.x.dims[1] * p.x.dims[2];
  for (int64_t i = FirstIndex(); i < rows * per_row; i += IndexStep()) {
    const int64_t row = i / per_row, at = i % per_row;
    const int64_t token = row % p.x.dims[2], sequence = row / p.x.dims[2] / p.x.dims[1];
    const int64_t x = RowOffset(p.x, row), out = RowOffset(p.out, row);
    if (at >= pairs) {
      const int64_t d = at + pairs;
      StoreElement(p.out, out + d * p.out.strides[3], LoadElement(p.x, x + d * p.x.strides[3]));
      continue;
    }
    const int64_t a = PairFirst(p.rotation, at), b = PairSecond(p.rotation, at);
    const Pair rotated = RotatePair(
        p.rotation, sequence, token, at,
        {LoadElement(p.x, x + a * p.x.strides[3]), LoadElement(p.x, x + b * p.x.strides[3])});
    StoreElement(p.out, out + a * p.out.strides[3], rotated.a);
    StoreElement(p.out, out + b * p.out.strides[3], rotated.b);
  }
}

__global__ void EmbeddingKernel(const EmbeddingParams p) {
  const int64_t columns = p.out.dims[1];
  for (int64_t i = FirstIndex(); i < p.out.dims[0] * columns; i += IndexStep()) {
    const int64_t row = i / columns, n = i % columns;
    const int32_t id = p.ids.As<const int32_t>()[row * p.ids.strides[0]];
    // Nobody can be told of a bad id here: its row shows it.
    float value = std::bit_cast<float>(0x7FC00000u);  // NaN
    if (id >= 0 && id < p.table.dims[0]) {
      value = LoadElement(p.table, id * p.table.strides[0] + n * p.table.strides[1]);
    }
    StoreElement(p.out, row * p.out.strides[0] + n * p.out.strides[1], value);
  }
}

__global__ void CastKernel(const CastParams p) {
  for (int64_t i = FirstIndex(); i < p.rows * p.columns; i += IndexStep()) {
    const int64_t row = i / p.columns, n = i % p.columns;
    StoreElement(p.out, row * p.out.strides[0] + n * p.out.strides[1],
                 LoadElement(p.x, row * p.x.strides[0] + n * p.x.strides[1]));
  }
}

__device__ void QuantizeLane(float x, BlockQ8_0& block) {
  const float magnitude = IsNaN(x) ? 0.0f : Abs(x);
  const float largest = WarpReduce(magnitude, [](float a, float b) { return a > b ? a : b; });
  const float d = Divide(largest, 127.0f);
  const float inverse = d != 0.0f ? Divide(1.0f, d) : 0.0f;
  if (LaneId() == 0) block.d = ToF16(d);
  block.q[LaneId()] = static_cast<int8_t>(QuantizeQ8_0(x, inverse));
}

__device__ void QuantizeLane(float x, BlockQ4_0& block) {
  // The element of largest magnitude with its sign, the first of equals: a larger key wins.
  const uint32_t magnitude = IsNaN(x) ? 0u : std::bit_cast<uint32_t>(Abs(x));
  const uint64_t key = uint64_t{magnitude} << 32 | static_cast<uint32_t>(31 - LaneId());
  const uint64_t best = WarpReduce(key, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  const float found = Shuffle(x, 31 - static_cast<int>(best & 31));
  const float extreme = best >> 32 ? found : 0.0f;
  const float d = Divide(extreme, -8.0f);
  const float inverse = d != 0.0f ? Divide(1.0f, d) : 0.0f;
  const int nibble = QuantizeQ4_0(x, inverse);
  const int high = Shuffle(nibble, (LaneId() + 16) % 32);
  if (LaneId() == 0) block.d = ToF16(d);
  if (LaneId() < 16) block.q[LaneId()] = static_cast<uint8_t>(nibble | high << 4);
}

template <typename Block>
__global__ void QuantizeKernel(const CastParams p) {
  const int64_t per_row = p.columns / Block::kLength;
  for (int64_t i = FirstIndex() / kWarpSize; i < p.rows * per_row; i += IndexStep() / kWarpSize) {
    const int64_t row = i / per_row, first = i % per_row * Block::kLength;
    const float x = LoadElement(p.x, row * p.x.strides[0] + (first + LaneId()) * p.x.strides[1]);
    QuantizeLane(x, p.out.As<Block>()[(row * p.out.strides[0] + first) / Block::kLength]);
  }
}

}  // namespace

KernelFunction RopeFunction() { return MakeKernelFunction<&RopeKernel>("rope"); }
KernelFunction EmbeddingFunction() { return MakeKernelFunction<&EmbeddingKernel>("embedding"); }
KernelFunction CastFunction(DType out) {
  switch (out) {
    case DType::kQ8_0:
      return MakeKernelFunction<&QuantizeKernel<BlockQ8_0>>("quantize_q8_0");
    case DType::kQ4_0:
      return MakeKernelFunction<&QuantizeKernel<BlockQ4_0>>("quantize_q4_0");
    default:
      return MakeKernelFunction<&CastKernel>("cast");
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
