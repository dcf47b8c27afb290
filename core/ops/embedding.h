// Embedding lookup: rows of a table by token id.
//
//   out[s,:] = table[ids[s],:]          block-quantised tables are dequantised
//
// An id outside [0, V) is InvalidArgument, and nothing is written. The ids are read on the host
// when the kernel runs, never by Validate.
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
