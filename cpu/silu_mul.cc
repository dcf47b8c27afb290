// SwiGLU's gated activation.
//
// reference: one element at a time in f64.
#include "core/ops/silu_mul.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const SiluMulArgs& args) {
  const TensorView& gate = args.gate;
  const TensorView& up = args.up;
  const TensorView& out = args.out;
  for (int64_t r = 0; r < out.dim(0); ++r) {
    for (int64_t n = 0; n < out.dim(1); ++n) {
      const double g = LoadElement(gate, r * gate.stride(0) + n * gate.stride(1));
      const double u = LoadElement(up, r * up.stride(0) + n * up.stride(1));
      StoreElement(out, r * out.stride(0) + n * out.stride(1),
                   static_cast<float>(g / (1.0 + std::exp(-g)) * u));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<SiluMulArgs> Kernels<SiluMulArgs>() {
  static constexpr std::array<Kernel<SiluMulArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<SiluMulArgs>, NoWorkspace<SiluMulArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
