// Element-wise sum, b broadcast over rows where its extent is 1.
//
// reference: one element at a time.
#include "core/ops/add.h"

#include <array>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const AddArgs& args) {
  const TensorView& a = args.a;
  const TensorView& b = args.b;
  const TensorView& out = args.out;
  const int64_t b_stride = b.dim(0) == 1 ? 0 : b.stride(0);
  for (int64_t r = 0; r < out.dim(0); ++r) {
    for (int64_t n = 0; n < out.dim(1); ++n) {
      StoreElement(out, r * out.stride(0) + n * out.stride(1),
                   LoadElement(a, r * a.stride(0) + n * a.stride(1)) +
                       LoadElement(b, r * b_stride + n * b.stride(1)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<AddArgs> Kernels<AddArgs>() {
  static constexpr std::array<Kernel<AddArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<AddArgs>, NoWorkspace<AddArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
