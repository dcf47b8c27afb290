// Rotary position embedding.
//
// reference: angle, cosine and sine in f64 for every element pair.
#include "core/ops/rope.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const RopeArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  const int64_t pairs = args.inv_freq.dim(0);
  const bool half = args.pairing == RopePairing::kHalf;
  for (int64_t b = 0; b < x.dim(0); ++b) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      for (int64_t s = 0; s < x.dim(2); ++s) {
        const int64_t x_row = b * x.stride(0) + h * x.stride(1) + s * x.stride(2);
        const int64_t out_row = b * out.stride(0) + h * out.stride(1) + s * out.stride(2);
        const int64_t position_offset =
            s * args.positions.stride(-1) +
            (args.positions.rank() == 2 ? b * args.positions.stride(0) : 0);
        const double position = *args.positions.At<int32_t>(position_offset);
        for (int64_t i = 0; i < pairs; ++i) {
          const double angle = position * *args.inv_freq.At<float>(i * args.inv_freq.stride(0));
          const double cosine = args.magnitude * std::cos(angle);
          const double sine = args.magnitude * std::sin(angle);
          const int64_t a = half ? i : 2 * i;
          const int64_t c = half ? i + pairs : 2 * i + 1;
          const double x_a = LoadElement(x, x_row + a * x.stride(3));
          const double x_c = LoadElement(x, x_row + c * x.stride(3));
          StoreElement(out, out_row + a * out.stride(3),
                       static_cast<float>(x_a * cosine - x_c * sine));
          StoreElement(out, out_row + c * out.stride(3),
                       static_cast<float>(x_a * sine + x_c * cosine));
        }
        for (int64_t d = 2 * pairs; d < x.dim(3); ++d) {
          StoreElement(out, out_row + d * out.stride(3), LoadElement(x, x_row + d * x.stride(3)));
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<RopeArgs> Kernels<RopeArgs>() {
  static constexpr std::array<Kernel<RopeArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<RopeArgs>, NoWorkspace<RopeArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
