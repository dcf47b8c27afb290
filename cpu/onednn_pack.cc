#include "cpu/onednn_pack.h"

#include <algorithm>

#include "core/status.h"
#include "cpu/backend.h"
#include "cpu/matmul_packed_weights.h"
#include "cpu/matmul_pairs.h"
#include "cpu/matmul_panels.h"
#include "cpu/onednn_cache.h"
#include "cpu/packed_as.h"
#include "cpu/stream.h"

namespace tandem::cpu {

bool PacksInPlace(Backend& backend, DType dtype, bool float_activations) {
  if (IsBlockQuantized(dtype)) return !float_activations;
  if (dtype != DType::kBF16 || float_activations) return false;
  const auto stream = backend.CreateStream();
  return stream.ok() && static_cast<const CpuStream&>(**stream).features().avx512_bf16;
}

absl::StatusOr<std::unique_ptr<PackedWeights>> PackWeights(Backend& backend,
                                                           const TensorView& weights,
                                                           bool float_activations) {
  TANDEM_RETURN_IF_ERROR(ValidateView("weights", weights, 2));
  if (!IsBlockQuantized(weights.dtype)) TANDEM_RETURN_IF_ERROR(CheckFloat("weights", weights));
  if (weights.device != backend.device()) {
    return InvalidArgument("weights: expected to be on ", Name(backend.device()), ", they are on ",
                           Name(weights.device));
  }
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Stream> stream, backend.CreateStream());
  const auto& cpu_stream = static_cast<const CpuStream&>(*stream);
  if (IsBlockQuantized(weights.dtype)) {
    return PackInt8(weights, backend.allocator(), cpu_stream.pool());
  }
  const int64_t n = weights.dim(0), k = weights.dim(1);
  if (PacksInPlace(backend, weights.dtype, float_activations) &&
      (weights.stride(1) == 1 || k <= 1)) {
    return PackPairs(weights, cpu_stream.features().isa, backend.allocator(), cpu_stream.pool());
  }
  const int64_t panels = n / kPanel + (n % kPanel != 0);
  const auto floats = CheckedMul(panels * kPanel, k);
  const auto bytes = floats ? CheckedMul(*floats, sizeof(float)) : std::nullopt;
  if (!bytes) return InvalidArgument("weights: size of ", ToString(weights), " overflows 64 bits");
  // Only oneDNN reads the panels, and it cannot be limited (see onednn_matmul.cc).
  if (cpu_stream.features().isa != cpu_stream.onednn().isa()) {
    return Unimplemented("weights: nothing reads packed weights when limited to ",
                         std::string(Name(cpu_stream.features().isa)));
  }
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<Buffer> buffer, backend.allocator().Allocate(*bytes));
  const PanelOps& ops = PanelOpsFor(cpu_stream.features().isa);
  auto* data = static_cast<float*>(buffer->data());
  cpu_stream.pool().ParallelFor(panels, [&](int64_t panel, int) {
    const int64_t n0 = panel * kPanel;
    ops.expand_panel(weights, 0, n0, std::min(kPanel, n - n0), k, data + n0 * k);
  });
  return PackedAs<PanelWeights>(std::move(buffer), weights);
}

}  // namespace tandem::cpu
