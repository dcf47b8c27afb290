// Attention, plain: one query row at a time, one key at a time, online softmax
// (core/ops/online_softmax.h, Milakov & Gimelshein 2018) in f32.
//
// One task per query row (batch, head, query). K and V are read once per query row, so Hq / Hkv
// times per query. Every variant, any strides, any head sizes, f32/f16/bf16 in any mixture, i8
// caches. Only visible keys, values and biases are read, and of the page table only what they need.
// It exists to be obviously right, to be the last entry of the list, and to be compared with.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "core/dtype.h"
#include "core/ops/online_softmax.h"
#include "cpu/attention_kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

struct Scratch {
  float* q;    // [D] of one row
  float* acc;  // [Dv] of one row
};

Scratch Carve(Workspace& workspace, const AttentionArgs& args, int64_t workers) {
  return {workspace.Take<float>(workers * args.head_dim()),
          workspace.Take<float>(workers * args.v_head_dim())};
}

// One query of one head.
struct Row {
  int64_t batch;  // sequence
  int64_t head, kv_head;
  int64_t query;  // within its sequence
  AttentionSequence sequence;

  int64_t q_row() const { return sequence.q_begin + query; }
  // Offset of the row in q, out or lse.
  int64_t Offset(const TensorView& view) const {
    return sequence.q_batch * view.stride(0) + head * view.stride(1) + q_row() * view.stride(2);
  }
  // Offset of column j in bias or mask, whose extents are whole or 1.
  int64_t BroadcastOffset(const TensorView& view, int64_t j) const {
    const int64_t index[] = {batch, head, q_row(), j};
    int64_t offset = 0;
    for (int axis = 0; axis < 4; ++axis) {
      if (view.dim(axis) != 1) offset += index[axis] * view.stride(axis);
    }
    return offset;
  }
};

// Offset of key j of the cache in k, v or (the first three dimensions of which they are) a scale.
int64_t CacheOffset(const AttentionArgs& args, const TensorView& view, const Row& row, int64_t j) {
  int64_t plane = row.batch, index = j;
  if (args.paged()) {
    const TensorView& table = args.page_table;
    plane =
        *table.At<int32_t>(row.batch * table.stride(0) + j / args.page_size() * table.stride(1));
    index = j % args.page_size();
  }
  return plane * view.stride(0) + row.kv_head * view.stride(1) + index * view.stride(2);
}

bool MaskShows(const TensorView& mask, const Row& row, int64_t j) {
  if (!mask.present()) return true;
  if (mask.dtype == DType::kBool) return *mask.At<uint8_t>(row.BroadcastOffset(mask, j)) != 0;
  return (*mask.At<uint32_t>(row.BroadcastOffset(mask, j / 32)) >> (j % 32) & 1u) != 0;
}

// s of the equation, from the product of q and the key.
float Score(const AttentionArgs& args, const Row& row, int64_t j, float dot, float bias) {
  float score = args.Scale() * dot;
  if (args.softcap > 0.0f) score = args.softcap * std::tanh(score / args.softcap);
  if (args.alibi_slopes.present()) {
    const int64_t distance = std::abs(row.sequence.rule.Position(row.query) - j);
    score -= *args.alibi_slopes.At<float>(row.head * args.alibi_slopes.stride(0)) *
             static_cast<float>(distance);
  }
  return score + bias;
}

float Load(float x) { return x; }
float Load(F16 x) { return ToFloat(x); }
float Load(BF16 x) { return ToFloat(x); }
float Load(int8_t x) { return static_cast<float>(x); }

// Element i of a key or value is scale * data[i * stride].
template <typename T>
struct Vector {
  const T* data;
  int64_t stride;
  float scale;
  float operator[](int64_t i) const { return scale * Load(data[i * stride]); }
};

// Adds keys [begin, end) to the state of one row. locate(view, scale, j): key j of k or v.
template <typename Locate>
void AddKeys(const AttentionArgs& args, const Row& row, int64_t begin, int64_t end, Locate locate,
             const float* q, SoftmaxState& state, float* acc) {
  for (int64_t j = begin; j < end; ++j) {
    if (!MaskShows(args.mask, row, j)) continue;
    float bias = 0.0f;
    if (args.bias.present()) {
      bias = LoadElement(args.bias, row.BroadcastOffset(args.bias, j));
      if (bias == kNegInf) continue;  // not visible: what the key holds does not matter
    }
    const auto [key, value] = locate(j);
    float dot = 0.0f;
    for (int64_t d = 0; d < args.head_dim(); ++d) dot += q[d] * key[d];
    // The state of a single key: exp(score - score) = 1, except that a score of -inf adds nothing
    // and a NaN stays NaN.
    const float score = Score(args, row, j, dot, bias);
    const float weight = ExpDiff(score, score);
    const SoftmaxState::Scales scales = state.Merge({score, weight});
    for (int64_t d = 0; d < args.v_head_dim(); ++d) {
      acc[d] = acc[d] * scales.self + scales.other * weight * value[d];
    }
  }
}

template <typename T>
void AddCachedKeys(const AttentionArgs& args, const Row& row, int64_t begin, int64_t end,
                   const float* q, SoftmaxState& state, float* acc) {
  const auto locate = [&](int64_t j) {
    const auto at = [&](const TensorView& view, const TensorView& scale) -> Vector<T> {
      const float factor =
          scale.present() ? *scale.At<float>(CacheOffset(args, scale, row, j)) : 1.0f;
      return {view.At<T>(CacheOffset(args, view, row, j)), view.stride(3), factor};
    };
    return std::pair(at(args.k, args.k_scale), at(args.v, args.v_scale));
  };
  AddKeys(args, row, begin, end, locate, q, state, acc);
}

template <typename T>
void AddNewKeys(const AttentionArgs& args, const Row& row, int64_t begin, int64_t end,
                const float* q, SoftmaxState& state, float* acc) {
  const auto locate = [&](int64_t j) {
    const auto at = [&](const TensorView& view) -> Vector<T> {
      return {view.At<T>(row.batch * view.stride(0) + row.kv_head * view.stride(1) +
                         (j - row.sequence.cache_len) * view.stride(2)),
              view.stride(3), 1.0f};
    };
    return std::pair(at(args.k_new), at(args.v_new));
  };
  AddKeys(args, row, begin, end, locate, q, state, acc);
}

void RunRow(const AttentionArgs& args, const Row& row, float* q, float* acc) {
  for (int64_t d = 0; d < args.v_head_dim(); ++d) acc[d] = 0.0f;
  SoftmaxState state;
  if (row.query < row.sequence.rule.q_len) {  // else padding of a ragged batch
    for (int64_t d = 0; d < args.head_dim(); ++d) {
      q[d] = LoadElement(args.q, row.Offset(args.q) + d * args.q.stride(3));
    }
    const KeyRange range = row.sequence.rule.Range(row.query);
    const int64_t cached = std::min(range.end, row.sequence.cache_len);
    if (args.k.dtype == DType::kI8) {
      AddCachedKeys<int8_t>(args, row, range.begin, cached, q, state, acc);
    } else {
      DispatchFloat(args.k.dtype, [&]<typename T>() {
        AddCachedKeys<T>(args, row, range.begin, cached, q, state, acc);
      });
    }
    if (args.k_new.present()) {
      DispatchFloat(args.k_new.dtype, [&]<typename T>() {
        AddNewKeys<T>(args, row, std::max(range.begin, row.sequence.cache_len), range.end, q, state,
                      acc);
      });
    }
    if (args.sinks.present()) {  // a key without a value
      const float sink = *args.sinks.At<float>(row.head * args.sinks.stride(0));
      const SoftmaxState::Scales scales = state.Merge({sink, ExpDiff(sink, sink)});
      for (int64_t d = 0; d < args.v_head_dim(); ++d) acc[d] *= scales.self;
    }
  }
  const float normalizer = state.Normalizer();
  for (int64_t d = 0; d < args.v_head_dim(); ++d) {
    StoreElement(args.out, row.Offset(args.out) + d * args.out.stride(3), acc[d] * normalizer);
  }
  if (args.lse.present()) *args.lse.At<float>(row.Offset(args.lse)) = state.LogSumExp();
}

// Row number `index` of q's batch `batch`.
Row MakeRow(const AttentionArgs& args, int64_t batch, int64_t head, int64_t index) {
  int64_t sequence = batch, query = index;
  if (args.q_offsets.present()) {
    const auto offset = [&](int64_t b) {
      return int64_t{*args.q_offsets.At<int32_t>(b * args.q_offsets.stride(0))};
    };
    sequence = 0;
    while (offset(sequence + 1) <= index) ++sequence;
    query = index - offset(sequence);
  }
  return {sequence, head, head / args.group(), query, args.Sequence(sequence)};
}

absl::Status Run(const KernelContext& context, const AttentionArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  const Scratch scratch = Carve(*context.workspace, args, pool.size());
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  const int64_t heads = args.q_heads(), rows = args.q.dim(2);
  if (args.out.empty() && !args.lse.present()) return absl::OkStatus();
  pool.ParallelFor(args.q.dim(0) * heads * rows, [&](int64_t task, int worker) {
    const int64_t batch = task / rows / heads, head = task / rows % heads;
    RunRow(args, MakeRow(args, batch, head, task % rows), scratch.q + worker * args.head_dim(),
           scratch.acc + worker * args.v_head_dim());
  });
  return absl::OkStatus();
}

int64_t WorkspaceBytes(const KernelContext& context, const AttentionArgs& args) {
  Workspace counting = Workspace::Counting();
  Carve(counting, args, CpuStream::Of(context).pool().size());
  return counting.bytes_used();
}

}  // namespace

Kernel<AttentionArgs> AttentionReference() {
  return {"reference", DeviceKind::kCpu, SupportsAll<AttentionArgs>, WorkspaceBytes, Run};
}

}  // namespace tandem::cpu
