// Quantisation of a model file: the same model with its matrices in other types.
//
// Every metadata pair is copied; general.file_type and general.quantization_version are set to what
// the file then holds. Tensors:
//
//   vectors, norms (*_norm.weight), routers (*gate_inp.weight)  F32
//   matrices (rank 2 and more, *.weight)                        the chosen type
//   everything else                                             copied
//
// A matrix whose rows are not whole blocks of the chosen type falls back to q8_0, or to f16 if they
// are not whole blocks of that either; `on_tensor` says so. Matrices must be F32, F16 or BF16, or
// already of the chosen type (copied). Their numbers must be finite and at most 65504 in magnitude
// (block scales are f16), unless they stay F32 or BF16.
//
// Memory: two buffers of at most 16 MiB, or of one row. Each tensor is read, converted (by the cast
// op, in parallel over rows) and written a slice at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "dispatch/context.h"
#include "model/gguf.h"

namespace tandem {

struct QuantizedTensor {
  std::string_view name;
  Shape shape;
  std::string from, to;  // ggml's names of the types
  int64_t bytes = 0;     // as written
  std::string fallback;  // why it has another type than the chosen one; else empty
};

struct QuantizeOptions {
  DType type = DType::kQ4_K;
  // output.weight, or token_embd.weight where there is none, which then is the output matrix too.
  std::optional<DType> output_type;
  // token_embd.weight is copied as it is.
  bool keep_embeddings = false;
  // Type of the matrices whose names contain a text; the last match counts, before output_type.
  std::vector<std::pair<std::string, DType>> tensor_types;
  // Before each tensor is converted.
  std::function<void(const QuantizedTensor&)> on_tensor;
  // Bytes of the result written so far.
  std::function<void(int64_t done, int64_t total)> on_progress;
};

struct QuantizeStats {
  int64_t input_bytes = 0;
  int64_t output_bytes = 0;
};

// Writes `path` (replaced if it is there), which must not be the file of `in`; on an error `path`
// is what it was. Errors: InvalidArgument names the tensor or the path; whatever the system says
// about writing.
absl::StatusOr<QuantizeStats> QuantizeGguf(Context& context, const GgufFile& in,
                                           const std::string& path, const QuantizeOptions& options);

}  // namespace tandem
