// The grouped_matmul kernels of the CPU, in order. Last those that run one product after the other:
// by the best kernel for each, and by the plain one.
#include "core/ops/grouped_matmul.h"

#include <array>

#include "core/ops/grouped_matmul_sequential.h"
#include "cpu/kernels.h"

namespace tandem::cpu {
namespace {

template <typename Args>
KernelList<Args> Reference() {
  return Kernels<Args>().last(1);
}

using Sequential = SequentialGroupedMatMul<Kernels<MatMulArgs>, Kernels<SiluMulArgs>>;
using Plain = SequentialGroupedMatMul<Reference<MatMulArgs>, Reference<SiluMulArgs>>;

}  // namespace

template <>
KernelList<GroupedMatMulArgs> Kernels<GroupedMatMulArgs>() {
  static constexpr std::array<Kernel<GroupedMatMulArgs>, 2> kKernels = {
      {{"sequential", DeviceKind::kCpu, Sequential::Supports, Sequential::WorkspaceBytes,
        Sequential::Run},
       {"reference", DeviceKind::kCpu, Plain::Supports, Plain::WorkspaceBytes, Plain::Run}}};
  return kKernels;
}

}  // namespace tandem::cpu
