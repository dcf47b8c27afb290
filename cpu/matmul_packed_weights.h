// Packs a block-quantised matrix [N, K] for the integer product (matmul_packed.h).
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "core/buffer.h"
#include "core/ops/matmul.h"
#include "cpu/thread_pool.h"

namespace tandem::cpu {

// Unimplemented for dtypes that have no packed form; `weights` is otherwise valid.
absl::StatusOr<std::unique_ptr<PackedWeights>> PackInt8(const TensorView& weights,
                                                        Allocator& allocator, ThreadPool& pool);

}  // namespace tandem::cpu
