#include "cpu/matmul_pairs.h"

#include <algorithm>

#include "core/status.h"
#include "cpu/matmul_panels.h"
#include "cpu/packed_as.h"

namespace tandem::cpu {

const BF16* PairWeights::panel(int64_t n0) const { return panels() + n0 * PaddedPairDepth(k); }

absl::StatusOr<std::unique_ptr<PackedWeights>> PackPairs(const TensorView& weights, Isa isa,
                                                         Allocator& allocator, ThreadPool& pool) {
  const int64_t n = weights.dim(0), k = weights.dim(1);
  const int64_t panels = n / kPanel + (n % kPanel != 0);
  const auto elements = CheckedMul(panels * kPanel, PaddedPairDepth(k));
  const auto bytes = elements ? CheckedMul(*elements, sizeof(BF16)) : std::nullopt;
  if (!bytes) return InvalidArgument("weights: size of ", ToString(weights), " overflows 64 bits");
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<Buffer> buffer, allocator.Allocate(*bytes));
  auto* data = static_cast<BF16*>(buffer->data());
  const PanelOps& ops = PanelOpsFor(isa);
  pool.ParallelFor(panels, [&](int64_t panel, int) {
    const int64_t n0 = panel * kPanel;
    ops.pair_panel(weights, 0, n0, std::min(kPanel, n - n0), k, data + n0 * PaddedPairDepth(k));
  });
  return PackedAs<PairWeights>(std::move(buffer), weights);
}

}  // namespace tandem::cpu
