// Grouped matrix products by their definition (core/ops/grouped_matmul.h), on host memory.
#pragma once

#include <vector>

#include "core/ops/grouped_matmul.h"

namespace tandem::reference {

struct GroupedMatMulResult {
  // Of each out, [M, N_i] row-major: in f64 throughout; by the straightforward implementation
  // (matmul.h; silu_multiply in f32 on products in f32, then stored in out's dtype); and how far
  // off roundings of the sums, and of the activations where they may be rounded, may leave an
  // element.
  struct Out {
    std::vector<double> oracle, naive, slack;
  };
  std::vector<Out> outs;
};

// sum_floor: what any order of summation may be off by, relative to the sum of magnitudes.
GroupedMatMulResult GroupedMatMul(const GroupedMatMulArgs& args, double sum_floor);

}  // namespace tandem::reference
