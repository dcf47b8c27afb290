#include "dispatch/split_costs.h"

#include <algorithm>
#include <limits>

#include "core/ops/merge_attention.h"
#include "dispatch/cost_correction.h"
#include "dispatch/cost_model.h"
#include "dispatch/facts.h"
#include "dispatch/split_cache.h"

namespace tandem {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr DeviceKind kCpu = DeviceKind::kCpu, kCuda = DeviceKind::kCuda;

// A tensor of which only the extents matter.
TensorView Extents(DType dtype, const Shape& shape, DeviceKind kind) {
  return MakeView(static_cast<void*>(nullptr), dtype, shape, Device{kind, 0});
}

int64_t BytesOf(const TensorView& view) { return ByteOffset(view.dtype, view.num_elements()); }

double CallTime(const SplitCosts& costs, const OpFacts& facts, DeviceKind kind) {
  return costs.call(facts, kind).value_or(kNever);
}

// There and back.
double RoundTrip(const SplitCosts& costs, DeviceKind home, DeviceKind away, int64_t sent,
                 int64_t returned) {
  return costs.copy(home, away, sent) + costs.copy(away, home, returned);
}

// Attention to rows [begin, begin + rows).
AttentionArgs PartOf(const CacheCall& call, DeviceKind kind, int64_t begin, int64_t rows) {
  const KvCacheShape& cache = call.cache;
  const int64_t v_head_dim = cache.v_head_dim > 0 ? cache.v_head_dim : cache.head_dim;
  const bool last = begin + rows == call.length;
  AttentionArgs args;
  args.q = Extents(call.q_dtype, {cache.batch, call.q_heads, call.q_len, cache.head_dim}, kind);
  args.k = Extents(cache.dtype, {cache.batch, cache.kv_heads, rows, cache.head_dim}, kind);
  args.v = Extents(cache.dtype, {cache.batch, cache.kv_heads, rows, v_head_dim}, kind);
  if (cache.dtype == DType::kI8) {
    args.k_scale = args.v_scale = Extents(DType::kF32, {cache.batch, cache.kv_heads, rows}, kind);
  }
  if (last && call.new_len > 0) {
    args.k_new =
        Extents(call.q_dtype, {cache.batch, cache.kv_heads, call.new_len, cache.head_dim}, kind);
    args.v_new =
        Extents(call.q_dtype, {cache.batch, cache.kv_heads, call.new_len, v_head_dim}, kind);
  }
  args.out = Extents(DType::kF32, {cache.batch, call.q_heads, call.q_len, v_head_dim}, kind);
  args.lse = Extents(DType::kF32, {cache.batch, call.q_heads, call.q_len}, kind);
  args.causal = call.causal;
  args.window_left = call.window_left;
  args.keys_before = begin;
  args.keys_after = call.length - begin - rows;
  if (!last) args.new_after = call.new_len;
  return args;
}

// The GPU's first `rows`, or the CPU's last.
AttentionArgs ShareOf(const CacheCall& call, DeviceKind kind, int64_t rows) {
  return PartOf(call, kind, kind == kCuda ? 0 : call.length - rows, rows);
}

double AttentionShare(const SplitCosts& costs, const CacheCall& call, DeviceKind home,
                      DeviceKind kind, int64_t rows) {
  const AttentionArgs args = ShareOf(call, kind, rows);
  double seconds = CallTime(costs, FactsOf(args), kind);
  if (kind != home) {
    const auto given = [](const TensorView& view) { return view.present() ? BytesOf(view) : 0; };
    seconds += RoundTrip(costs, home, kind, BytesOf(args.q) + given(args.k_new) + given(args.v_new),
                         BytesOf(args.out) + BytesOf(args.lse));
  }
  return seconds;
}

double MergeTime(const SplitCosts& costs, const CacheCall& call, DeviceKind home) {
  const AttentionArgs part = PartOf(call, home, 0, 0);
  const TensorView outs[] = {part.out, part.out}, lses[] = {part.lse, part.lse};
  MergeAttentionArgs merge;
  merge.out_parts = outs;
  merge.lse_parts = lses;
  merge.out = part.out;
  // Unknown: it is small beside the rest.
  return costs.call(FactsOf(merge), home).value_or(0.0);
}

MatMulArgs PartOf(const ProductCall& call, DeviceKind kind, int64_t columns) {
  MatMulArgs args;
  args.a = Extents(call.input, {call.m, call.k}, kind);
  args.b = Extents(call.weights, {columns, call.k}, kind);
  args.out = Extents(call.output, {call.m, columns}, kind);
  return args;
}

OpFacts FactsOf(const ProductCall& call, const MatMulArgs& part) {
  OpFacts facts = FactsOf(part);
  facts.packed = call.packed && part.a.device.kind == kCpu;
  return facts;
}

double ProductShare(const SplitCosts& costs, const ProductCall& call, DeviceKind home,
                    DeviceKind kind, int64_t columns) {
  const MatMulArgs args = PartOf(call, kind, columns);
  double seconds = CallTime(costs, FactsOf(call, args), kind);
  if (kind != home) seconds += RoundTrip(costs, home, kind, BytesOf(args.a), BytesOf(args.out));
  return seconds;
}

// That both parts take at least.
double ReadSeconds(double bytes_per_second, const OpFacts& cpu_part, const OpFacts& gpu_part) {
  if (bytes_per_second <= 0.0) return 0.0;
  return static_cast<double>(cpu_part.bytes + gpu_part.bytes) / bytes_per_second;
}

template <typename Call>
double ReadSeconds(const SplitCosts& costs, const Call& call, int64_t gpu_share) {
  return ReadSeconds(costs.shared_bytes_per_second, PartFacts(call, kCpu, gpu_share),
                     PartFacts(call, kCuda, gpu_share));
}

template <typename Args>
double SharedSecondsOf(const Context& context, const Args& cpu_part, const Args& gpu_part) {
  const CostModel* model = context.cost_model();
  const double rate = model == nullptr ? 0.0 : model->profile().shared_bytes_per_second;
  return rate > 0.0 ? ReadSeconds(rate, FactsOf(cpu_part), FactsOf(gpu_part)) : 0.0;
}

double Together(const SplitCosts& costs, double cpu, double gpu, double read, double join) {
  return std::max({costs.queue_seconds + cpu, gpu, read}) + join;
}

}  // namespace

SplitCosts CostsOf(const CostModel& model, const CostCorrection* correction) {
  SplitCosts costs;
  costs.call = [&model, correction](const OpFacts& facts,
                                    DeviceKind device) -> std::optional<double> {
    const int table = model.TableOf(facts, device);
    if (table < 0) return std::nullopt;
    const double seconds = model.SecondsFrom(table, CostPointOf(facts));
    const int slot = CostCorrection::SlotOf(table, /*moved=*/false);
    return correction == nullptr ? seconds : seconds * correction->Factor(slot);
  };
  costs.copy = [&model](DeviceKind from, DeviceKind to, int64_t bytes) {
    return model.CopySeconds(from, to, bytes, /*pinned=*/true);
  };
  costs.queue_seconds = model.LaunchSeconds(kCuda);
  costs.margin = 0.1;
  costs.shared_bytes_per_second = model.profile().shared_bytes_per_second;
  return costs;
}

std::optional<SplitCosts> CostsOf(Context& context) {
  if (!context.predicts()) return std::nullopt;
  return CostsOf(*context.cost_model(), &context.cost_correction());
}

double SharedSeconds(const Context& context, const AttentionArgs& cpu_part,
                     const AttentionArgs& gpu_part) {
  return SharedSecondsOf(context, cpu_part, gpu_part);
}

double SharedSeconds(const Context& context, const MatMulArgs& cpu_part,
                     const MatMulArgs& gpu_part) {
  return SharedSecondsOf(context, cpu_part, gpu_part);
}

OpFacts PartFacts(const CacheCall& call, DeviceKind device, int64_t gpu_rows) {
  return FactsOf(ShareOf(call, device, device == kCuda ? gpu_rows : call.length - gpu_rows));
}

OpFacts PartFacts(const ProductCall& call, DeviceKind device, int64_t gpu_columns) {
  return FactsOf(call, PartOf(call, device, device == kCuda ? gpu_columns : call.n - gpu_columns));
}

double AttentionSeconds(const SplitCosts& costs, const CacheCall& call, DeviceKind home,
                        int64_t gpu_rows) {
  gpu_rows = std::clamp<int64_t>(gpu_rows, 0, call.length);
  if (call.length == 0) return AttentionShare(costs, call, home, home, 0);
  if (gpu_rows == 0) return AttentionShare(costs, call, home, kCpu, call.length);
  const double gpu = AttentionShare(costs, call, home, kCuda, gpu_rows);
  if (gpu_rows == call.length) return gpu;
  return Together(costs, AttentionShare(costs, call, home, kCpu, call.length - gpu_rows), gpu,
                  ReadSeconds(costs, call, gpu_rows), MergeTime(costs, call, home));
}

absl::StatusOr<SplitChoice> ChooseAttentionSplit(const SplitCosts& costs, const CacheCall& call,
                                                 DeviceKind home, int64_t gpu_most) {
  SplitProblem problem;
  problem.total = call.length;
  problem.step = SplitKvCache::kRowStep;
  problem.gpu_most = std::min(gpu_most, call.length);
  problem.queue_seconds = costs.queue_seconds;
  problem.margin = costs.margin;
  problem.join_seconds = MergeTime(costs, call, home);
  if (call.length > 1) problem.least_seconds = ReadSeconds(costs, call, call.length / 2);
  return ChooseSplit(
      problem, [&](int64_t rows) { return AttentionShare(costs, call, home, kCpu, rows); },
      [&](int64_t rows) { return AttentionShare(costs, call, home, kCuda, rows); });
}

double MatMulSeconds(const SplitCosts& costs, const ProductCall& call, DeviceKind home,
                     int64_t gpu_columns) {
  gpu_columns = std::clamp<int64_t>(gpu_columns, 0, call.n);
  if (gpu_columns == 0) return ProductShare(costs, call, home, kCpu, call.n);
  const double gpu = ProductShare(costs, call, home, kCuda, gpu_columns);
  if (gpu_columns == call.n) return gpu;
  return Together(costs, ProductShare(costs, call, home, kCpu, call.n - gpu_columns), gpu,
                  ReadSeconds(costs, call, gpu_columns), 0.0);
}

absl::StatusOr<SplitChoice> ChooseMatMulSplit(const SplitCosts& costs, const ProductCall& call,
                                              DeviceKind home, int64_t gpu_most) {
  SplitProblem problem;
  problem.total = call.n;
  problem.step = kColumnStep;
  problem.gpu_most = std::min(gpu_most, call.n);
  problem.queue_seconds = costs.queue_seconds;
  problem.margin = costs.margin;
  if (call.n > 1) problem.least_seconds = ReadSeconds(costs, call, call.n / 2);
  return ChooseSplit(
      problem, [&](int64_t n) { return ProductShare(costs, call, home, kCpu, n); },
      [&](int64_t n) { return ProductShare(costs, call, home, kCuda, n); });
}

}  // namespace tandem
