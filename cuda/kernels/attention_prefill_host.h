// What the host side of both prefill kernels, `prefill` and `prefill_f32`, has in common. `rows`:
// of a block.
#pragma once

#include "absl/status/statusor.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "cuda/kernels/attention_prefill.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

// The least of kPrefillDims that has room for both head sizes; 0: none.
int PrefillDimOf(const AttentionArgs& args);

// Unimplemented if a head size or the number of rows, keys or blocks is too large, or the device
// has not the shared memory.
absl::Status CheckPrefillSize(const KernelContext& context, const AttentionArgs& args, int rows,
                              int64_t shared_bytes);

// `type`: of the products; operands that have it can be copied as they are. Queues the upload of
// lists that are in host memory.
absl::StatusOr<AttentionPrefillParams> MakePrefillParams(const KernelContext& context,
                                                         const AttentionArgs& args, DType type,
                                                         int rows);

LaunchConfig PrefillConfig(const AttentionArgs& args, int rows, int64_t shared_bytes);

}  // namespace tandem::cuda
