// Embedding lookup: rows of a table by token id.
//
//   out[s,:] = table[ids[s],:]          block-quantised tables are dequantised
//
// An id outside [0, V) is InvalidArgument, and nothing is written, where the host reads the ids
// (when the kernel runs, never in Validate). A GPU cannot report it: its row of out is NaN.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

struct EmbeddingArgs {
  static constexpr OpKind kOp = OpKind::kEmbedding;

  TensorView table;  // [V, N]  f32, f16, bf16 or a block format
  TensorView ids;    // [S]     i32
  TensorView out;    // [S, N]  f32, f16, bf16
};

absl::Status Validate(const EmbeddingArgs& args);

}  // namespace tandem
