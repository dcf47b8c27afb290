// The published grid of `tandem bench --compare`: which calls are compared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/op.h"

namespace tandem::tools {

// Calls that are the same but for one length, x.
struct GridSeries {
  std::string id, op_name, title, shape, x_name;
  OpKind op = OpKind::kAttention;
  DType activations = DType::kF32;  // q and out; a and out
  DType stored = DType::kF16;       // k and v; b; the mask
  bool prefill = false;             // attention: x queries of x keys, causal; else one of x keys
  int64_t n = 0, k = 0;             // matmul: weights [n, k], x rows
  std::vector<int64_t> x;           // rising
};

// Heads of attention: those of an 8B model.
inline constexpr int64_t kGridHeads = 32, kGridKvHeads = 8, kGridHeadDim = 128;

std::vector<GridSeries> ComparisonGrid(bool quick);

}  // namespace tandem::tools
