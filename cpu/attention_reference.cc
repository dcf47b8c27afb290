// Attention, plain: one query row at a time, one key at a time, online softmax
// (core/ops/online_softmax.h, Milakov & Gimelshein 2018) in f32.
//
// One task per query row (batch, head, query). K and V are read once per query row, so Hq / Hkv
// times per query. Any strides, any head sizes, f32/f16/bf16 in any mixture. It exists to be
// obviously right, to be the last entry of the list, and to be compared with.
#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/ops/online_softmax.h"
#include "cpu/attention_kernels.h"

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

struct RowIndex {
  int64_t batch, head, kv_head, query;
};

// Adds keys [begin, end) of `k`, `v` (counted within these views) to the state of one row.
template <typename T>
void AddKeys(const TensorView& k, const TensorView& v, const RowIndex& row, int64_t begin,
             int64_t end, float scale, const float* q, SoftmaxState& state, float* acc) {
  const T* k_head = k.At<T>(row.batch * k.stride(0) + row.kv_head * k.stride(1));
  const T* v_head = v.At<T>(row.batch * v.stride(0) + row.kv_head * v.stride(1));
  const int64_t head_dim = k.dim(3), v_head_dim = v.dim(3);
  for (int64_t j = begin; j < end; ++j) {
    float dot = 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) {
      dot += q[d] * ToFloat(k_head[j * k.stride(2) + d * k.stride(3)]);
    }
    // The state of a single key: exp(score - score) = 1, except that a score of -inf adds nothing
    // and a NaN stays NaN.
    const float score = scale * dot;
    const float weight = ExpDiff(score, score);
    const SoftmaxState::Scales scales = state.Merge({score, weight});
    for (int64_t d = 0; d < v_head_dim; ++d) {
      const float value = ToFloat(v_head[j * v.stride(2) + d * v.stride(3)]);
      acc[d] = acc[d] * scales.self + scales.other * weight * value;
    }
  }
}

void RunRow(const AttentionArgs& args, const RowIndex& row, float* q, float* acc) {
  const int64_t head_dim = args.head_dim(), v_head_dim = args.v_head_dim();
  DispatchFloat(args.q.dtype, [&]<typename T>() {
    const T* data = args.q.At<T>(row.batch * args.q.stride(0) + row.head * args.q.stride(1) +
                                 row.query * args.q.stride(2));
    for (int64_t d = 0; d < head_dim; ++d) q[d] = ToFloat(data[d * args.q.stride(3)]);
  });
  for (int64_t d = 0; d < v_head_dim; ++d) acc[d] = 0.0f;

  SoftmaxState state;
  const KeyRange range = args.Rule().Range(row.query);
  const int64_t cached = args.cache_len();
  DispatchFloat(args.k.dtype, [&]<typename T>() {
    AddKeys<T>(args.k, args.v, row, range.begin, std::min(range.end, cached), args.Scale(), q,
               state, acc);
  });
  if (args.k_new.present()) {
    DispatchFloat(args.k_new.dtype, [&]<typename T>() {
      AddKeys<T>(args.k_new, args.v_new, row, std::max<int64_t>(range.begin - cached, 0),
                 range.end - cached, args.Scale(), q, state, acc);
    });
  }

  const float normalizer = state.Normalizer();
  DispatchFloat(args.out.dtype, [&]<typename T>() {
    T* data = args.out.At<T>(row.batch * args.out.stride(0) + row.head * args.out.stride(1) +
                             row.query * args.out.stride(2));
    for (int64_t d = 0; d < v_head_dim; ++d) {
      data[d * args.out.stride(3)] = FromFloat<T>(acc[d] * normalizer);
    }
  });
  if (args.lse.present()) {
    *args.lse.At<float>(row.batch * args.lse.stride(0) + row.head * args.lse.stride(1) +
                        row.query * args.lse.stride(2)) = state.LogSumExp();
  }
}

absl::Status Run(const KernelContext& context, const AttentionArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  const Scratch scratch = Carve(*context.workspace, args, pool.size());
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  const int64_t heads = args.q_heads(), queries = args.q_len();
  if (args.out.empty() && !args.lse.present()) return absl::OkStatus();
  pool.ParallelFor(args.batch() * heads * queries, [&](int64_t task, int worker) {
    const int64_t query = task % queries;
    const int64_t head = task / queries % heads;
    const int64_t batch = task / queries / heads;
    RunRow(args, {batch, head, head / args.group(), query}, scratch.q + worker * args.head_dim(),
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
  return {"reference", DeviceKind::kCpu,
          [](const KernelContext&, const AttentionArgs& args) { return CheckPlain(args); },
          WorkspaceBytes, Run};
}

}  // namespace tandem::cpu
