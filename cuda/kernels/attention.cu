// Attention, generic: everything that core/ops/attention.h allows, plainly. Online softmax (Milakov
// & Gimelshein 2018, core/ops/online_softmax.h) over tiles of 128 keys.
//
// One block of 128 threads per row of q. For each tile of its visible keys: a thread computes the
// score of one key; the block finds the tile's maximum and sum; then a thread adds up the tile's
// values for every 128th column. Accumulators and the query lie in shared memory, so head sizes are
// limited only by it. K and V are read once per query row, that is Hq / Hkv times per query, by
// threads that each follow one row: this kernel is here to be right and to be the last of the list.
#include "core/ops/online_softmax.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/attention_sequence.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// Weight of a key that is not visible: neither it nor its value is read.
constexpr float kHidden = -1.0f;

// One query of one head.
struct Row {
  int64_t batch;    // sequence
  int64_t q_batch;  // where it lies in q, out and lse
  int64_t head, kv_head, row;
  bool real;         // else padding of a ragged batch
  KeyRange visible;  // what the rule shows
  int64_t position, cache_len;

  __device__ int64_t Offset(const DeviceTensor& t) const {
    return q_batch * t.strides[0] + head * t.strides[1] + row * t.strides[2];
  }
};

__device__ Row RowOf(const AttentionParams& p, int64_t i) {
  Row r;
  const Divisor::Result row = p.rows.Divide(i), head = p.heads.Divide(row.quotient);
  r.row = row.remainder;
  r.head = head.remainder;
  r.kv_head = p.group.Divide(r.head).quotient;
  r.q_batch = head.quotient;
  const Sequence sequence = SequenceOfRow(p, r.q_batch, r.row);
  r.batch = sequence.batch;
  const int64_t query = r.row - sequence.q_begin;
  r.real = query < sequence.rule.q_len;
  r.visible = r.real ? sequence.rule.Range(query) : KeyRange{0, 0};
  r.position = sequence.rule.Position(query);
  r.cache_len = sequence.rule.kv_len - p.new_len;
  return r;
}

// A row of keys or values: elements factor * data[offset + d * stride].
struct Vector {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t offset = 0, stride = 0;
  float factor = 1.0f;

  __device__ float operator[](int64_t d) const {
    return factor * LoadNumber(data, dtype, offset + d * stride);
  }
};

__device__ Vector VectorOf(const AttentionParams& p, const DeviceTensor& cache,
                           const DeviceTensor& scales, const DeviceTensor& fresh, const Row& r,
                           int64_t j) {
  Vector v;
  if (j >= r.cache_len) {
    v.data = fresh.data;
    v.dtype = fresh.dtype;
    v.offset = r.batch * fresh.strides[0] + r.kv_head * fresh.strides[1] +
               (j - r.cache_len) * fresh.strides[2];
    v.stride = fresh.strides[3];
    return v;
  }
  v.data = cache.data;
  v.dtype = cache.dtype;
  v.offset = CacheOffset(p, cache, r.batch, r.kv_head, j);
  v.stride = cache.strides[3];
  if (scales.present())
    v.factor = scales.As<const float>()[CacheOffset(p, scales, r.batch, r.kv_head, j)];
  return v;
}

// Is key j visible beyond what the rule says? Adds its bias to *bias.
__device__ bool Visible(const AttentionParams& p, const Row& r, int64_t j, float* bias) {
  if (!MaskShows(p, r.batch, r.head, r.row, j)) return false;
  *bias = BiasOf(p, r.batch, r.head, r.row, j);
  if (*bias == kNegInf) return false;
  return j >= r.cache_len || CacheOffset(p, p.k, r.batch, r.kv_head, j) >= 0;
}

__device__ float Score(const AttentionParams& p, const Row& r, int64_t j, const float* q,
                       float bias) {
  const Vector key = VectorOf(p, p.k, p.k_scale, p.k_new, r, j);
  float dot = 0.0f;
#pragma unroll 1
  for (int64_t d = 0; d < p.q.dims[3]; ++d) dot = MultiplyAdd(q[d], key[d], dot);
  const float score = ScoreOf(p, dot, SlopeOf(p, r.head), r.position, j);
  return score + bias;
}

__global__ void __launch_bounds__(kAttentionThreads) AttentionKernel(const AttentionParams p) {
  const int64_t columns = p.out.dims[3];
  SharedCarver carver;
  const AttentionShared shared = CarveAttention(carver, p.q.dims[3], columns);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t rows = p.q.dims[0] * p.q.dims[1] * p.q.dims[2];
  for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    const Row r = RowOf(p, i);
    const KeyRange range = r.visible;
    for (int64_t d = thread; d < p.q.dims[3]; d += kAttentionThreads) {
      shared.q[d] = LoadNumber(p.q, r.Offset(p.q) + d * p.q.strides[3]);
    }
    for (int64_t d = thread; d < columns; d += kAttentionThreads) shared.acc[d] = 0.0f;
    SyncThreads();

    SoftmaxState state;
    for (int64_t base = range.begin; base < range.end; base += kAttentionThreads) {
      const int64_t j = base + thread;
      float bias = 0.0f;
      const bool visible = j < range.end && Visible(p, r, j, &bias);
      const float score = visible ? Score(p, r, j, shared.q, bias) : kNegInf;
      const float max = BlockMax(score, shared.scratch);
      const float weight = ExpDiff(score, max);
      shared.weights[thread] = visible ? weight : kHidden;
      const float sum = BlockSum(weight, shared.scratch);  // also: everybody sees the weights
      const SoftmaxState::Scales scales = state.Merge({max, sum});
      const int64_t count =
          range.end - base < kAttentionThreads ? range.end - base : kAttentionThreads;
      for (int64_t d = thread; d < columns; d += kAttentionThreads) {
        float total = 0.0f;
#pragma unroll 1
        for (int64_t c = 0; c < count; ++c) {
          if (shared.weights[c] == kHidden) continue;
          const Vector value = VectorOf(p, p.v, p.v_scale, p.v_new, r, base + c);
          total = MultiplyAdd(shared.weights[c], value[d], total);
        }
        shared.acc[d] = shared.acc[d] * scales.self + scales.other * total;
      }
      SyncThreads();
    }
    float factor = 1.0f;
    if (r.real && p.sinks.present()) {  // a key without a value
      const float sink = p.sinks.As<const float>()[r.head * p.sinks.strides[0]];
      factor = state.Merge({sink, ExpDiff(sink, sink)}).self;
    }
    const float normalizer = factor * state.Normalizer();
    for (int64_t d = thread; d < columns; d += kAttentionThreads) {
      StoreElement(p.out, r.Offset(p.out) + d * p.out.strides[3], shared.acc[d] * normalizer);
    }
    if (thread == 0 && p.lse.present()) p.lse.As<float>()[r.Offset(p.lse)] = state.LogSumExp();
    SyncThreads();
  }
}

}  // namespace

KernelFunction AttentionFunction() { return MakeKernelFunction<&AttentionKernel>("attention"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
