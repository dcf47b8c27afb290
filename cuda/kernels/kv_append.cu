// Appending to a key/value cache, generic: one block per row. A row is read in pairs where it is
// rotated and element by element elsewhere; for an int8 cache twice, the first time for its largest
// magnitude. Any strides and dtypes. Reads every row once from memory (the second time from cache),
// writes it once.
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/rotation.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/kv_append.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// Row index taken apart.
struct RowIndex {
  int64_t batch, head, token;
  __device__ int64_t In(const DeviceTensor& t) const {
    return batch * t.strides[0] + head * t.strides[1] + token * t.strides[2];
  }
};

__device__ RowIndex IndexOf(const Divisor& heads, const Divisor& tokens, int64_t row) {
  const Divisor::Result token = tokens.Divide(row), head = heads.Divide(token.quotient);
  return {head.quotient, head.remainder, token.remainder};
}

// Calls emit(d, value) for every element of a row, rotated if there is a rotation; each thread its
// share.
template <bool kRotate, typename Emit>
__device__ void ForEachValue(const DeviceTensor& x, int64_t offset, const RotationParams& rotation,
                             int64_t sequence, int64_t token, Emit emit) {
  const int64_t pairs = kRotate && rotation.positions != nullptr ? rotation.pairs : 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < x.dims[3] - pairs; i += kKvAppendThreads) {
    if (!kRotate || i >= pairs) {
      const int64_t d = i + pairs;
      emit(d, LoadElement(x, offset + d * x.strides[3]));
      continue;
    }
    const int64_t a = PairFirst(rotation, i), b = PairSecond(rotation, i);
    const Pair rotated = RotatePair(
        rotation, sequence, token, i,
        {LoadElement(x, offset + a * x.strides[3]), LoadElement(x, offset + b * x.strides[3])});
    emit(a, rotated.a);
    emit(b, rotated.b);
  }
}

template <bool kRotate>
__device__ void AppendRow(const KvAppendParams& p, const DeviceTensor& x, const DeviceTensor& cache,
                          const DeviceTensor& scales, int64_t row, float* scratch) {
  const RowIndex index = IndexOf(p.heads, p.tokens, row);
  // A length below 0 stays below: brought to 0, it would overwrite the first rows.
  const int64_t length = p.cache_lens.At(index.batch, INT32_MIN, p.capacity, p.position);
  const int64_t at = length + index.token;
  RowIndex place = {index.batch, index.head, at};
  bool inside = at >= 0 && at < p.capacity;
  if (inside && p.page_table.data != nullptr) {
    const Divisor::Result page = p.page_size.Divide(at);
    place.batch = p.page_table.At(index.batch, page.quotient);
    place.token = page.remainder;
    inside = place.batch >= 0 && place.batch < cache.dims[0];
  }
  if (!inside) return;  // the same for all threads
  const int64_t from = index.In(x), to = place.In(cache);
  // What is rotated is rounded to the type of x, as if it had been rotated in place.
  const auto for_each = [&](auto emit) {
    ForEachValue<kRotate>(x, from, p.rotation, index.batch, index.token,
                          [&](int64_t d, float value) { emit(d, RoundTo(x.dtype, value)); });
  };
  if (cache.dtype != DType::kI8) {
    for_each(
        [&](int64_t d, float value) { StoreElement(cache, to + d * cache.strides[3], value); });
    return;
  }
  float largest = 0.0f;  // NaN once there is a value that is not finite
  for_each([&](int64_t, float value) {
    const float magnitude = IsFinite(value) ? Abs(value) : std::bit_cast<float>(0x7FC00000u);
    largest = magnitude > largest || IsNaN(magnitude) ? magnitude : largest;
  });
  const float scale = Divide(BlockMax(largest, scratch), 127.0f);
  if (threadIdx.x == 0) scales.As<float>()[place.In(scales)] = scale;
  for_each([&](int64_t d, float value) {
    float q = scale > 0.0f ? RoundToEven(Divide(value, scale)) : 0.0f;
    q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
    cache.As<int8_t>()[to + d * cache.strides[3]] = static_cast<int8_t>(q);
  });
}

__global__ void __launch_bounds__(kKvAppendThreads) KvAppendKernel(const KvAppendParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<float>(kWarpSize);
  const int64_t rows = p.k.dims[0] * p.k.dims[1] * p.k.dims[2];
  const int64_t queries = p.q.present() ? p.q.dims[0] * p.q.dims[1] * p.q.dims[2] : 0;
#pragma unroll 1
  for (int64_t i = blockIdx.x; i < 2 * rows + queries; i += gridDim.x) {
    if (i < rows) {
      AppendRow<true>(p, p.k, p.k_cache, p.k_scale, i, scratch);
    } else if (i < 2 * rows) {
      AppendRow<false>(p, p.v, p.v_cache, p.v_scale, i - rows, scratch);
    } else {
      const RowIndex index = IndexOf(p.q_heads, p.queries, i - 2 * rows);
      const int64_t skipped = p.k.dims[2] - p.q.dims[2];
      const int64_t to = index.In(p.q_out);
      ForEachValue<true>(p.q, index.In(p.q), p.rotation, index.batch, skipped + index.token,
                         [&](int64_t d, float value) {
                           StoreElement(p.q_out, to + d * p.q_out.strides[3], value);
                         });
    }
  }
}

}  // namespace

KernelFunction KvAppendFunction() { return MakeKernelFunction<&KvAppendKernel>("kv_append"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
