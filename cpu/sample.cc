// Draws one token per row: temperature, top-k, top-p, inverse CDF.
//
// simd: the few most probable tokens are picked in one pass over the logits: whole vectors are
// compared with the least logit worth keeping, those above it are collected, and whenever the
// collection is full it is cut back to the wanted number, which raises that bar. Only the picked
// ones are sorted. With top-k that number is k. Without, the total weight of the row is summed
// first (f64 vectors), then tokens are picked in growing numbers until the draw or top-p is
// reached. Memory: the logits once, or a few times without top-k, from cache. Needs contiguous
// rows.
//
// reference: sorts all drawable tokens of a row by falling logit; any strides.
//
// Both compute weights and sums in f64, so that they draw the same tokens.
#include "core/ops/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#ifndef TANDEM_CPU_SAMPLE_SORTED  // this file is compiled once per target
#define TANDEM_CPU_SAMPLE_SORTED
namespace tandem::cpu {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

struct Candidate {
  float logit;
  int32_t token;
};

// Falling probability, ties by rising index: a total order, so every way of sorting agrees.
struct Before {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  }
};

// Unnormalised probability relative to the largest logit. Infinite logits share all of it.
double Weight(float logit, float largest, float temperature) {
  if (logit == largest) return 1.0;
  return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) / temperature);
}

// Draws from the most probable tokens of a row, sorted, whose weights add up to `total` (all
// drawable tokens' or, with top-k, these tokens'). -1 if the draw lies beyond them.
int32_t Draw(std::span<const Candidate> sorted, bool all, double total, const SampleArgs& args,
             double uniform) {
  const auto weight = [&](size_t i) {
    return Weight(sorted[i].logit, sorted[0].logit, args.temperature);
  };
  size_t kept = sorted.size();
  double kept_sum = total;
  if (args.top_p < 1.0f) {
    kept_sum = 0.0;
    kept = 0;
    while (kept < sorted.size() && (kept == 0 || kept_sum < args.top_p * total)) {
      kept_sum += weight(kept++);
    }
    if (!all && kept_sum < args.top_p * total) return -1;
  }
  double running = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    running += weight(i);
    if (running > uniform * kept_sum) return sorted[i].token;
  }
  // Beyond the last by rounding of the total only, where these are all.
  return all ? sorted[kept - 1].token : -1;
}

// The whole row is sorted: the draw is certain.
int32_t DrawSorted(std::span<const Candidate> sorted, const SampleArgs& args, double uniform) {
  if (sorted.empty()) return 0;
  if (args.temperature == 0.0f) return sorted[0].token;
  if (args.top_k > 0 && args.top_k < static_cast<int64_t>(sorted.size())) {
    sorted = sorted.first(static_cast<size_t>(args.top_k));
  }
  double total = 0.0;
  for (const Candidate& c : sorted) total += Weight(c.logit, sorted[0].logit, args.temperature);
  return Draw(sorted, /*all=*/true, total, args, uniform);
}

constexpr int64_t kMaxVector = 16;  // f32 lanes of the widest vector
// How many tokens are picked at first when top-k does not say; then four times more, and so on.
constexpr int64_t kFirstPick = 256;

// Room to pick `wanted` of `columns` tokens: the more, the less often it is cut back.
int64_t PickCapacity(int64_t wanted, int64_t columns) {
  wanted = std::min(wanted, columns);
  return std::min(columns, wanted + std::max<int64_t>(wanted, 1024)) + kMaxVector;
}

// Scratch of one row. Without top-k everything may have to be picked.
int64_t RowCandidates(const SampleArgs& args) {
  const int64_t columns = args.logits.dim(1);
  if (args.temperature == 0.0f) return PickCapacity(1, columns);
  return PickCapacity(args.top_k > 0 ? args.top_k : columns, columns);
}

// One scratch per row, or per thread when there are fewer threads.
int64_t ScratchRows(const SampleArgs& args, ThreadPool& pool) {
  return std::min<int64_t>(args.logits.dim(0), pool.size());
}

}  // namespace
}  // namespace tandem::cpu
#endif  // TANDEM_CPU_SAMPLE_SORTED

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/sample.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// The `wanted` first drawable tokens by `Before`, unsorted, in candidates; returns how many (fewer
// when the row has fewer).
template <typename X>
int64_t PickTop(const X* logits, int64_t columns, int64_t wanted, Candidate* candidates) {
  const FloatTag d;
  wanted = std::min(wanted, columns);
  const int64_t capacity = PickCapacity(wanted, columns) - kMaxVector;
  float bar = kNegativeInfinity;  // only what is above it counts; false for NaN
  int64_t count = 0;
  const auto cut_back = [&] {
    std::nth_element(candidates, candidates + wanted - 1, candidates + count, Before());
    count = wanted;
    bar = candidates[wanted - 1].logit;
  };
  int64_t n = 0;
  for (; n + kLanes <= columns; n += kLanes) {
    const FloatVec v = LoadFloats(logits + n);
    const auto above = hn::Gt(v, hn::Set(d, bar));
    if (hn::AllFalse(d, above)) continue;
    HWY_ALIGN float values[kLanes];
    hn::Store(v, d, values);
    for (int64_t i = 0; i < kLanes; ++i) {
      candidates[count] = {values[i], static_cast<int32_t>(n + i)};
      count += values[i] > bar ? 1 : 0;
    }
    if (count > capacity) cut_back();
  }
  for (; n < columns; ++n) {
    candidates[count] = {ToFloat(logits[n]), static_cast<int32_t>(n)};
    count += candidates[count].logit > bar ? 1 : 0;
  }
  if (count > wanted) cut_back();
  return count;
}

// Sum of the weights of all drawable tokens, given the largest logit.
template <typename X>
double TotalWeight(const X* logits, int64_t columns, float largest, float temperature) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, hn::ScalableTag<double>> df;
  constexpr int64_t kDoubles = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<double>()));
  const auto one = hn::Set(d, 1.0);
  const auto lowest = hn::Set(d, -1001.0);  // exp is 0 from here
  const auto maximum = hn::Set(d, static_cast<double>(largest));
  const auto divisor = hn::Set(d, static_cast<double>(temperature));
  auto sum = hn::Zero(d);
  for (int64_t n = 0; n < columns; n += kDoubles) {
    HWY_ALIGN float values[kDoubles];
    const float* source = values;
    if (std::is_same_v<X, float> && n + kDoubles <= columns) {
      source = reinterpret_cast<const float*>(logits + n);
    } else {
      for (int64_t i = 0; i < kDoubles; ++i) {
        values[i] = n + i < columns ? ToFloat(logits[n + i]) : kNegativeInfinity;
      }
    }
    const auto logit = hn::PromoteTo(d, hn::LoadU(df, source));
    const auto exponent = hn::Div(hn::Sub(logit, maximum), divisor);
    const auto bounded = hn::IfThenElse(hn::Gt(exponent, lowest), exponent, lowest);  // NaN too
    const auto weight = hn::IfThenElse(hn::Eq(logit, maximum), one, hn::Exp(d, bounded));
    sum = hn::Add(sum, weight);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

template <typename X>
int32_t SampleRow(const X* logits, const SampleArgs& args, double uniform, Candidate* candidates) {
  const int64_t columns = args.logits.dim(1);
  const bool greedy = args.temperature == 0.0f;
  if (greedy || (args.top_k > 0 && args.top_k < columns)) {
    const int64_t count = PickTop(logits, columns, greedy ? 1 : args.top_k, candidates);
    std::sort(candidates, candidates + count, Before());
    return DrawSorted({candidates, static_cast<size_t>(count)}, args, uniform);
  }
  double total = 0.0;
  for (int64_t wanted = kFirstPick;; wanted = wanted > columns / 4 ? columns : wanted * 4) {
    const int64_t count = PickTop(logits, columns, wanted, candidates);
    if (count == 0) return 0;
    const std::span<const Candidate> picked(candidates, static_cast<size_t>(count));
    std::sort(candidates, candidates + count, Before());
    const bool all = count < wanted || wanted >= columns;
    if (all) return DrawSorted(picked, args, uniform);
    if (total == 0.0) {
      total = TotalWeight(logits, columns, candidates[0].logit, args.temperature);
    }
    const int32_t token = Draw(picked, /*all=*/false, total, args, uniform);
    if (token >= 0) return token;
  }
}

absl::Status Sample(const KernelContext& context, const SampleArgs& args) {
  const TensorView& logits = args.logits;
  ThreadPool& pool = CpuStream::Of(context).pool();
  const int64_t scratch_rows = ScratchRows(args, pool);
  const int64_t row_candidates = RowCandidates(args);
  Candidate* scratch = context.workspace->Take<Candidate>(scratch_rows * row_candidates);
  if (!context.workspace->ok()) return absl::InternalError("sample: workspace too small");
  DispatchFloat(logits.dtype, [&]<typename X>() {
    ParallelRows(pool, logits.dim(0), logits.dim(1), [&](int64_t begin, int64_t end, int worker) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t slot = logits.dim(0) <= scratch_rows ? r : worker;
        *args.out.At<int32_t>(r * args.out.stride(0)) = SampleRow(
            logits.At<X>(r * logits.stride(0)), args,
            *args.uniform.At<float>(r * args.uniform.stride(0)), scratch + slot * row_candidates);
      }
    });
  });
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const SampleArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  return CheckUnitStride("logits", args.logits);
}

int64_t SimdWorkspace(const KernelContext& context, const SampleArgs& args) {
  Workspace workspace = Workspace::Counting();
  workspace.Take<Candidate>(ScratchRows(args, CpuStream::Of(context).pool()) * RowCandidates(args));
  return workspace.bytes_used();
}

int64_t ReferenceWorkspace(const KernelContext&, const SampleArgs& args) {
  Workspace workspace = Workspace::Counting();
  workspace.Take<Candidate>(args.logits.dim(1));
  return workspace.bytes_used();
}

absl::Status RunReference(const KernelContext& context, const SampleArgs& args) {
  const TensorView& logits = args.logits;
  Candidate* candidates = context.workspace->Take<Candidate>(logits.dim(1));
  if (candidates == nullptr) return absl::InternalError("sample: workspace too small");
  for (int64_t r = 0; r < logits.dim(0); ++r) {
    size_t count = 0;
    for (int64_t n = 0; n < logits.dim(1); ++n) {
      const float logit = LoadElement(logits, r * logits.stride(0) + n * logits.stride(1));
      if (logit > kNegativeInfinity) candidates[count++] = {logit, static_cast<int32_t>(n)};
    }
    std::sort(candidates, candidates + count, Before());
    const double uniform = *args.uniform.At<float>(r * args.uniform.stride(0));
    *args.out.At<int32_t>(r * args.out.stride(0)) =
        DrawSorted(std::span<const Candidate>(candidates, count), args, uniform);
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<SampleArgs> Kernels<SampleArgs>() {
  static constexpr std::array<Kernel<SampleArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, SimdWorkspace, N_AVX3::Sample},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, SimdWorkspace, N_AVX2::Sample},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, SimdWorkspace,
       TANDEM_N_SCALAR::Sample},
      {"reference", DeviceKind::kCpu, SupportsAll<SampleArgs>, ReferenceWorkspace, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
