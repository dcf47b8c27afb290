// Tandem's public ops. Each walks the same path: Validate -> scheduler (device) -> registry (first
// kernel of that device that supports the arguments) -> workspace -> kernel -> trace.
//
// XInto(context, args) writes to args.out and, once the workspace has its size, allocates nothing.
// X(context, args) allocates the output on the device of the inputs and returns it; args.out is
// ignored. Errors: InvalidArgument (bad arguments, or a forced kernel that does not exist),
// Unimplemented (no kernel accepts; the message lists every kernel with its reason),
// ResourceExhausted, Internal.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/ops/add.h"
#include "core/ops/argmax.h"
#include "core/ops/attention.h"
#include "core/ops/cast.h"
#include "core/ops/embedding.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/kv_append.h"
#include "core/ops/mask.h"
#include "core/ops/matmul.h"
#include "core/ops/merge_attention.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"
#include "core/ops/sample.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"
#include "core/tensor.h"
#include "dispatch/context.h"

namespace tandem {

absl::Status AttentionInto(Context& context, const AttentionArgs& args);
absl::Status MaskInto(Context& context, const MaskArgs& args);
absl::Status MatMulInto(Context& context, const MatMulArgs& args);
absl::Status GroupedMatMulInto(Context& context, const GroupedMatMulArgs& args);
absl::Status SoftmaxInto(Context& context, const SoftmaxArgs& args);
absl::Status RmsNormInto(Context& context, const RmsNormArgs& args);
absl::Status RopeInto(Context& context, const RopeArgs& args);
absl::Status SiluMulInto(Context& context, const SiluMulArgs& args);
absl::Status AddInto(Context& context, const AddArgs& args);
absl::Status EmbeddingInto(Context& context, const EmbeddingArgs& args);
absl::Status KvAppendInto(Context& context, const KvAppendArgs& args);
absl::Status CastInto(Context& context, const CastArgs& args);
absl::Status ArgMaxInto(Context& context, const ArgMaxArgs& args);
absl::Status SampleInto(Context& context, const SampleArgs& args);
absl::Status MergeAttentionInto(Context& context, const MergeAttentionArgs& args);

// out has the dtype of q (attention), a (matmul, add), x, gate, logits or out_parts[0]; embedding
// and cast take it explicitly.
absl::StatusOr<Tensor> Attention(Context& context, AttentionArgs args);
// Masks: in host memory, or beside the lists of a batch.
absl::StatusOr<Tensor> Mask(Context& context, const MaskRule& rule, DType dtype);
// A band of rows, or a batch: [rows, columns], or [B, 1, rows, columns] if there is any of q_lens,
// kv_lens and kv_starts.
absl::StatusOr<Tensor> BatchMask(Context& context, MaskArgs args, DType dtype);
absl::StatusOr<Tensor> MatMul(Context& context, MatMulArgs args);
// One tensor per out: of every product, or the one of silu_multiply.
absl::StatusOr<std::vector<Tensor>> GroupedMatMul(Context& context, GroupedMatMulArgs args);
absl::StatusOr<Tensor> Softmax(Context& context, SoftmaxArgs args);
absl::StatusOr<Tensor> RmsNorm(Context& context, RmsNormArgs args);
absl::StatusOr<Tensor> Rope(Context& context, RopeArgs args);
absl::StatusOr<Tensor> SiluMul(Context& context, SiluMulArgs args);
absl::StatusOr<Tensor> Add(Context& context, AddArgs args);
absl::StatusOr<Tensor> Embedding(Context& context, EmbeddingArgs args, DType dtype);
absl::StatusOr<Tensor> Cast(Context& context, CastArgs args, DType dtype);
absl::StatusOr<Tensor> ArgMax(Context& context, ArgMaxArgs args);
absl::StatusOr<Tensor> Sample(Context& context, SampleArgs args);
absl::StatusOr<Tensor> MergeAttention(Context& context, MergeAttentionArgs args);

// Weights [N, K] repacked for the fastest matrix product of their device; pass the result as
// MatMulArgs::b_packed. A second copy of the matrix: of about the same size as stored for
// block-quantised types (whose packed form rounds activations, see MatMulArgs::float_activations)
// and, on a processor with bf16 dot products, for bf16 in a context that lets activations be
// rounded; in f32 for other floats. Unimplemented for dtypes that are multiplied from their stored
// form.
absl::StatusOr<std::unique_ptr<PackedWeights>> PackWeights(Context& context,
                                                           const TensorView& weights);
// Is that copy of matrices of `dtype` of about the same size as stored, and read by products of any
// number of rows? Then it may take the place of the stored one in memory.
bool PacksInPlace(Context& context, DType dtype);

}  // namespace tandem
