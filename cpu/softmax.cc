// Row softmax.
//
// reference: three passes over each row (maximum, sum, write) in f64; reads x three times.
#include "core/ops/softmax.h"

#include <array>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const SoftmaxArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  for (int64_t r = 0; r < x.dim(0); ++r) {
    const auto value = [&](int64_t n) {
      return static_cast<double>(args.scale) *
             static_cast<double>(LoadElement(x, r * x.stride(0) + n * x.stride(1)));
    };
    double maximum = -std::numeric_limits<double>::infinity();
    bool has_nan = false;
    for (int64_t n = 0; n < x.dim(1); ++n) {
      maximum = std::fmax(maximum, value(n));
      has_nan |= std::isnan(value(n));
    }
    const bool all_masked = maximum == -std::numeric_limits<double>::infinity() && !has_nan;
    double sum = 0.0;
    for (int64_t n = 0; n < x.dim(1); ++n) sum += std::exp(value(n) - maximum);
    for (int64_t n = 0; n < x.dim(1); ++n) {
      const double y = all_masked ? 0.0 : std::exp(value(n) - maximum) / sum;
      StoreElement(out, r * out.stride(0) + n * out.stride(1), static_cast<float>(y));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<SoftmaxArgs> Kernels<SoftmaxArgs>() {
  static constexpr std::array<Kernel<SoftmaxArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<SoftmaxArgs>, NoWorkspace<SoftmaxArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
