// Row reductions, generic: one block per row; each thread takes every 256th element, the block adds
// up in a fixed order. Any strides and dtypes, rows of any length.
//
// softmax reads a row three times (maximum, sum, result), rms_norm twice, argmax once; a row that
// stays in the L2 cache costs one read of memory.
#include "core/ops/online_softmax.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/rows.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void __launch_bounds__(kRowThreads) SoftmaxKernel(const SoftmaxParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<float>(kWarpSize);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t x = RowOffset(p.x, row), out = RowOffset(p.out, row);
    float max = kNegInf;
    for (int64_t n = threadIdx.x; n < p.columns; n += kRowThreads) {
      const float value = p.scale * LoadElement(p.x, x + n * p.x.strides[3]);
      max = value > max || IsNaN(value) ? value : max;
    }
    max = BlockMax(max, scratch);
    float sum = 0.0f;
    for (int64_t n = threadIdx.x; n < p.columns; n += kRowThreads) {
      sum += ExpDiff(p.scale * LoadElement(p.x, x + n * p.x.strides[3]), max);
    }
    sum = BlockSum(sum, scratch);
    const SoftmaxState state = {max, sum};
    for (int64_t n = threadIdx.x; n < p.columns; n += kRowThreads) {
      const float value = ExpDiff(p.scale * LoadElement(p.x, x + n * p.x.strides[3]), max);
      StoreElement(p.out, out + n * p.out.strides[3], value * state.Normalizer());
    }
  }
}

__global__ void __launch_bounds__(kRowThreads) RmsNormKernel(const RmsNormParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<float>(kWarpSize);
  const bool add = p.residual.present();
  const DeviceTensor& in = add ? p.sum : p.x;  // what is normalised
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t x = RowOffset(p.x, row), out = RowOffset(p.out, row);
    const int64_t from = RowOffset(in, row);
    const int64_t residual = add ? RowOffset(p.residual, row) : 0;
    float squares = 0.0f;
    for (int64_t n = threadIdx.x; n < p.columns; n += kRowThreads) {
      float value = LoadElement(p.x, x + n * p.x.strides[3]);
      if (add) {
        value = RoundTo(p.sum.dtype,
                        value + LoadElement(p.residual, residual + n * p.residual.strides[3]));
        StoreElement(p.sum, from + n * p.sum.strides[3], value);
      }
      squares = MultiplyAdd(value, value, squares);
    }
    squares = BlockSum(squares, scratch);
    const float inverse = 1.0f / Sqrt(squares / static_cast<float>(p.columns) + p.eps);
    for (int64_t n = threadIdx.x; n < p.columns; n += kRowThreads) {
      const float value = LoadElement(in, from + n * in.strides[3]);
      const float weight = LoadElement(p.weight, n * p.weight.strides[0]);
      StoreElement(p.out, out + n * p.out.strides[3], value * inverse * weight);
    }
  }
}

// Orders floats as integers, NaN below everything, -0 as +0; then the lower index first.
__device__ uint64_t ArgMaxKey(float value, int64_t index) {
  if (IsNaN(value)) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(index));
}

__global__ void __launch_bounds__(kRowThreads) ArgMaxKernel(const ArgMaxParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<uint64_t>(kWarpSize);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    uint64_t best = 0;
    for (int64_t n = threadIdx.x; n < p.columns; n += kRowThreads) {
      const uint64_t key =
          ArgMaxKey(LoadElement(p.x, row * p.x.strides[0] + n * p.x.strides[1]), n);
      best = key > best ? key : best;
    }
    best = BlockReduce(best, scratch, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
    if (threadIdx.x == 0) {
      const uint32_t index = best == 0 ? 0 : 0xFFFFFFFFu - static_cast<uint32_t>(best);
      p.out.As<int32_t>()[row * p.out.strides[0]] = static_cast<int32_t>(index);
    }
  }
}

}  // namespace

KernelFunction SoftmaxFunction() { return MakeKernelFunction<&SoftmaxKernel>("softmax"); }
KernelFunction RmsNormFunction() { return MakeKernelFunction<&RmsNormKernel>("rms_norm"); }
KernelFunction ArgMaxFunction() { return MakeKernelFunction<&ArgMaxKernel>("argmax"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
