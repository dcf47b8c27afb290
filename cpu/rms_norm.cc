// Root-mean-square normalisation of rows.
//
// reference: two passes over each row (sum of squares, write) in f64.
#include "core/ops/rms_norm.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const RmsNormArgs& args) {
  const TensorView& x = args.x;
  const int64_t columns = x.dim(-1);
  if (x.empty()) return absl::OkStatus();
  for (int64_t r = 0; r < NumRows(x); ++r) {
    const int64_t x_row = RowOffset(x, r);
    const int64_t out_row = RowOffset(args.out, r);
    double squares = 0.0;
    for (int64_t n = 0; n < columns; ++n) {
      const double value = LoadElement(x, x_row + n * x.stride(-1));
      squares += value * value;
    }
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(columns) + args.eps);
    for (int64_t n = 0; n < columns; ++n) {
      const double value = LoadElement(x, x_row + n * x.stride(-1));
      const double weight = LoadElement(args.weight, n * args.weight.stride(0));
      StoreElement(args.out, out_row + n * args.out.stride(-1),
                   static_cast<float>(value * inverse * weight));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<RmsNormArgs> Kernels<RmsNormArgs>() {
  static constexpr std::array<Kernel<RmsNormArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<RmsNormArgs>, NoWorkspace<RmsNormArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
