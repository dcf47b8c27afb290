// Merging attention over parts, generic: one block per row. Every thread finds the row's largest
// lse and sum (few numbers, the same for all), then adds the parts' columns in order. Any number of
// parts, strides and dtypes. Reads every part once, writes out once.
#include "core/ops/online_softmax.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/kernels/merge_attention.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void MergeAttentionKernel(const MergeAttentionParams p) {
  const int64_t heads = p.out.dims[1], queries = p.out.dims[2];
  const int64_t rows = p.out.dims[0] * heads * queries;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int64_t query = row % queries, head = row / queries % heads,
                  batch = row / queries / heads;
    const auto offset = [&](const DeviceTensor& t) {
      return batch * t.strides[0] + head * t.strides[1] + query * t.strides[2];
    };
    const auto lse_of = [&](int64_t part) {
      const DeviceTensor& lse = p.parts[part].lse;
      return lse.As<const float>()[offset(lse)];
    };
    // A NaN is not the largest; it makes the sum NaN.
    float largest = kNegInf;
    for (int64_t part = 0; part < p.count; ++part) {
      const float lse = lse_of(part);
      largest = lse > largest ? lse : largest;
    }
    float sum = 0.0f;
    for (int64_t part = 0; part < p.count; ++part) sum += ExpDiff(lse_of(part), largest);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int64_t n = threadIdx.x; n < p.out.dims[3]; n += blockDim.x) {
      float value = 0.0f;
      for (int64_t part = 0; part < p.count; ++part) {
        const float lse = lse_of(part);
        if (lse == kNegInf) continue;  // saw no key: whatever its out holds
        const DeviceTensor& out = p.parts[part].out;
        const float weight = ExpDiff(lse, largest) * inverse;
        value = MultiplyAdd(weight, LoadElement(out, offset(out) + n * out.strides[3]), value);
      }
      StoreElement(p.out, offset(p.out) + n * p.out.strides[3], value);
    }
    // Last, when nobody reads the parts' lse any more: it may be one of them.
    SyncThreads();
    if (threadIdx.x == 0 && p.lse.present()) {
      p.lse.As<float>()[offset(p.lse)] = sum == 0.0f ? kNegInf : largest + Log(sum);
    }
  }
}

}  // namespace

KernelFunction MergeAttentionFunction() {
  return MakeKernelFunction<&MergeAttentionKernel>("merge_attention");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
