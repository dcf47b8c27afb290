// Draws one token per row: temperature, top-k, top-p, inverse CDF.
//
// reference: sorts all drawable tokens of a row by falling logit; weights and sums in f64.
#include "core/ops/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

#include "core/status.h"
#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

struct Candidate {
  float logit;
  int32_t token;
};

// Falling probability, ties by rising index: a total order, so every way of sorting agrees.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Unnormalised probability relative to the largest logit. Infinite logits share all of it.
double Weight(float logit, float largest, float temperature) {
  if (logit == largest) return 1.0;
  return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) / temperature);
}

int32_t DrawSorted(std::span<const Candidate> sorted, const SampleArgs& args, double uniform) {
  if (sorted.empty()) return 0;
  if (args.temperature == 0.0f) return sorted[0].token;
  if (args.top_k > 0 && args.top_k < static_cast<int64_t>(sorted.size())) {
    sorted = sorted.first(static_cast<size_t>(args.top_k));
  }
  const auto weight = [&](size_t i) {
    return Weight(sorted[i].logit, sorted[0].logit, args.temperature);
  };
  double total = 0.0;
  for (size_t i = 0; i < sorted.size(); ++i) total += weight(i);
  size_t kept = 0;
  double kept_sum = 0.0;
  while (kept < sorted.size() && (kept == 0 || kept_sum < args.top_p * total)) {
    kept_sum += weight(kept++);
  }
  double running = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    running += weight(i);
    if (running > uniform * kept_sum) return sorted[i].token;
  }
  return sorted[kept - 1].token;
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
      if (logit > -std::numeric_limits<float>::infinity()) {  // neither -inf nor NaN
        candidates[count++] = {logit, static_cast<int32_t>(n)};
      }
    }
    std::sort(candidates, candidates + count, Before);
    const double uniform = *args.uniform.At<float>(r * args.uniform.stride(0));
    *args.out.At<int32_t>(r * args.out.stride(0)) =
        DrawSorted(std::span<const Candidate>(candidates, count), args, uniform);
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<SampleArgs> Kernels<SampleArgs>() {
  static constexpr std::array<Kernel<SampleArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<SampleArgs>, ReferenceWorkspace, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
