#include "cuda/blas/plan_cache.h"

#include <utility>

namespace tandem::cuda {

size_t BlasPlanCache::Hash::operator()(const BlasProblem& p) const {
  uint64_t hash = 0;
  const auto mix = [&](int64_t value) {  // multiplier of Knuth's MMIX; the rotation spreads it
    hash = (hash ^ static_cast<uint64_t>(value)) * 6364136223846793005u;
    hash = hash << 29 | hash >> 35;
  };
  for (const int64_t value : {p.m, p.n, p.k, p.batch, p.max_workspace_bytes}) mix(value);
  for (const BlasMatrix* matrix : {&p.a, &p.b, &p.c, &p.d}) {
    mix(matrix->ld);
    mix(matrix->batch_stride);
    mix(static_cast<int64_t>(matrix->dtype) << 8 | matrix->alignment);
  }
  mix(p.transpose_a << 4 | p.transpose_b << 3 | p.has_c << 2 | p.bias << 1 | p.gelu << 0);
  return static_cast<size_t>(hash);
}

absl::StatusOr<std::shared_ptr<const BlasPlan>> BlasPlanCache::Get(Blas& blas,
                                                                   const BlasProblem& problem) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = index_.find(problem); found != index_.end()) {
    ++stats_.hits;
    entries_.splice(entries_.begin(), entries_, found->second);
    return entries_.front().plan;
  }
  ++stats_.misses;
  // Under the lock: whoever wants the same plan is to have the same one.
  absl::StatusOr<std::shared_ptr<const BlasPlan>> plan = blas.MakePlan(problem);
  if (!plan.ok() && !absl::IsUnimplemented(plan.status())) return plan;
  entries_.push_front({problem, plan});
  index_[problem] = entries_.begin();
  if (static_cast<int64_t>(entries_.size()) > capacity_) {
    index_.erase(entries_.back().problem);
    entries_.pop_back();
    ++stats_.evictions;
  }
  return plan;
}

void BlasPlanCache::Clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  index_.clear();
  entries_.clear();
}

BlasPlanCache::Stats BlasPlanCache::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Stats stats = stats_;
  stats.size = static_cast<int64_t>(entries_.size());
  return stats;
}

}  // namespace tandem::cuda
