// Writes new keys and values into a cache.
//
// reference: one element at a time.
#include "core/ops/kv_append.h"

#include <array>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

void Append(const TensorView& x, const TensorView& cache, int64_t position) {
  const TensorView target = Slice(cache, 2, position, x.dim(2));
  for (int64_t r = 0; r < NumRows(x); ++r) {
    const int64_t x_row = RowOffset(x, r);
    const int64_t target_row = RowOffset(target, r);
    for (int64_t d = 0; d < x.dim(3); ++d) {
      StoreElement(target, target_row + d * target.stride(3),
                   LoadElement(x, x_row + d * x.stride(3)));
    }
  }
}

absl::Status RunReference(const KernelContext&, const KvAppendArgs& args) {
  Append(args.k, args.k_cache, args.position);
  Append(args.v, args.v_cache, args.position);
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<KvAppendArgs> Kernels<KvAppendArgs>() {
  static constexpr std::array<Kernel<KvAppendArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<KvAppendArgs>, NoWorkspace<KvAppendArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
