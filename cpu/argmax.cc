// Index of the largest element of each row.
//
// reference: one pass over each row.
#include "core/ops/argmax.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const ArgMaxArgs& args) {
  const TensorView& x = args.x;
  for (int64_t r = 0; r < x.dim(0); ++r) {
    int64_t best = -1;
    float best_value = 0.0f;
    for (int64_t n = 0; n < x.dim(1); ++n) {
      const float value = LoadElement(x, r * x.stride(0) + n * x.stride(1));
      if (std::isnan(value)) continue;
      if (best < 0 || value > best_value) {
        best = n;
        best_value = value;
      }
    }
    *args.out.At<int32_t>(r * args.out.stride(0)) = best < 0 ? 0 : static_cast<int32_t>(best);
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<ArgMaxArgs> Kernels<ArgMaxArgs>() {
  static constexpr std::array<Kernel<ArgMaxArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<ArgMaxArgs>, NoWorkspace<ArgMaxArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
