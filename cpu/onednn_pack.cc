#include "core/status.h"
#include "cpu/backend.h"

namespace tandem::cpu {

absl::StatusOr<std::unique_ptr<PackedWeights>> PackWeights(Backend&, const TensorView&) {
  return Unimplemented("the CPU multiplies weights as they are stored");
}

}  // namespace tandem::cpu
