// The plans of the problems met last: a library's heuristics take as long as many products.
//
// One plan per problem, made once, so that a shape always runs the same algorithm. That there is no
// algorithm is kept as well; other errors are not, for they may pass. The least recently used plan
// goes when there are too many. Thread-safe; a plan that was handed out outlives its eviction. A
// hit allocates nothing.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "cuda/blas/blas.h"

namespace tandem::cuda {

class BlasPlanCache {
 public:
  struct Stats {
    int64_t hits = 0;
    int64_t misses = 0;  // each asked the library
    int64_t evictions = 0;
    int64_t size = 0;
  };

  // A decoder has about ten products per number of rows.
  static constexpr int64_t kDefaultCapacity = 1024;

  explicit BlasPlanCache(int64_t capacity = kDefaultCapacity) : capacity_(capacity) {}

  // Asks `blas` if it is the first time.
  absl::StatusOr<std::shared_ptr<const BlasPlan>> Get(Blas& blas, const BlasProblem& problem);
  // The counters stay.
  void Clear();
  Stats stats() const;

 private:
  struct Hash {
    size_t operator()(const BlasProblem& problem) const;
  };
  struct Entry {
    BlasProblem problem;
    absl::StatusOr<std::shared_ptr<const BlasPlan>> plan;
  };

  const int64_t capacity_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<BlasProblem, std::list<Entry>::iterator, Hash> index_;
  Stats stats_;
};

}  // namespace tandem::cuda
