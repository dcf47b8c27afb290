// From the arguments of an attention call to the parameters of its kernels.
#pragma once

#include "absl/status/statusor.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "core/workspace.h"
#include "cuda/kernels/attention_params.h"

namespace tandem::cuda {

inline bool Is16Bit(DType dtype) { return dtype == DType::kF16 || dtype == DType::kBF16; }

// Keys of the whole sequence, of which a call may have a part: positions run up to it.
inline int64_t SequenceKeys(const AttentionArgs& args) {
  return args.cache_rows() + args.new_len() + args.new_after;
}

// What MakeAttentionParams takes from the workspace: copies of the lists that are in host memory.
void CountAttentionLists(Workspace& workspace, const AttentionArgs& args);

// Are the scores no more than q k times a positive scale? See attention_scores.h.
bool HasPlainScores(const AttentionArgs& args);

// Queues the upload of lists that are in host memory. Errors are those of the stream.
absl::StatusOr<AttentionParams> MakeAttentionParams(const KernelContext& context,
                                                    const AttentionArgs& args);

}  // namespace tandem::cuda
