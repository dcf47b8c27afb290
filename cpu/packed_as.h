// The end of packing, whatever the layout.
#pragma once

#include <memory>
#include <utility>

#include "core/buffer.h"
#include "core/ops/matmul.h"

namespace tandem::cpu {

// `weights` [N, K], packed into `buffer` in the layout of Weights.
template <typename Weights>
std::unique_ptr<PackedWeights> PackedAs(std::shared_ptr<Buffer> buffer, const TensorView& weights) {
  auto packed = std::make_unique<Weights>(std::move(buffer));
  packed->dtype = weights.dtype;
  packed->device = weights.device;
  packed->n = weights.dim(0);
  packed->k = weights.dim(1);
  return packed;
}

}  // namespace tandem::cpu
