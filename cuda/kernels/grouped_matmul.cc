// The grouped_matmul kernels of the device, in order. Last the one that launches one product after
// the other, by the best kernel for each.
#include "core/ops/grouped_matmul.h"

#include <array>

#include "core/ops/grouped_matmul_sequential.h"
#include "cuda/kernels.h"

namespace tandem::cuda {
namespace {

using Sequential = SequentialGroupedMatMul<Kernels<MatMulArgs>, Kernels<SiluMulArgs>>;

}  // namespace

template <>
KernelList<GroupedMatMulArgs> Kernels<GroupedMatMulArgs>() {
  static constexpr std::array<Kernel<GroupedMatMulArgs>, 1> kKernels = {
      {{"sequential", DeviceKind::kCuda, Sequential::Supports, Sequential::WorkspaceBytes,
        Sequential::Run}}};
  return kKernels;
}

}  // namespace tandem::cuda
