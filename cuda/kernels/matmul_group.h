// Several matrix products of the same activations in one launch: what kernels of grouped_matmul
// take, around the parameters of the kernel of single products that they share their loops with.
#pragma once

#include <cstdint>

#include "core/ops/grouped_matmul.h"

namespace tandem::cuda {

// Blocks of threads are dealt out to products by their output features: product i has blocks
// ends[i - 1] .. ends[i] - 1 of the grid and does what the single kernel would do with a grid of as
// many. With a gate there is one such share: every warp does a row of the gate's weights and then
// the same row of up's.
template <typename Params>
struct GroupParams {
  Params products[GroupedMatMulArgs::kMaxProducts];
  int64_t ends[GroupedMatMulArgs::kMaxProducts];
  bool gated;
};

}  // namespace tandem::cuda
