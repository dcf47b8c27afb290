// The grouped_matmul kernels of the CPU, in order. First those whose drivers do single products as
// well and are named after them; then those that run one product after the other:
// by the best kernel for each, and by the plain one.
#include "core/ops/grouped_matmul.h"

#include <array>

#include "core/ops/grouped_matmul_sequential.h"
#include "cpu/kernels.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_packed.h"

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
  static const std::array<Kernel<GroupedMatMulArgs>, 16> kernels = {{
      GroupedInt8MatMul(DotIsa::kAvx512Vnni),
      GroupedInt8MatMul(DotIsa::kAvxVnni),
      GroupedInt8MatMul(DotIsa::kAvx2),
      GroupedPairsMatMul(Isa::kAvx512),
      GroupedPairsMatMul(Isa::kAvx2),
      GroupedGemvInt8MatMul(DotIsa::kAvx512Vnni),
      GroupedGemvInt8MatMul(DotIsa::kAvxVnni),
      GroupedGemvInt8MatMul(DotIsa::kAvx2),
      GroupedGemvMatMul(Isa::kAvx512),
      GroupedGemvMatMul(Isa::kAvx2),
      GroupedGemvInt8MatMul(DotIsa::kScalar),
      GroupedPairsMatMul(Isa::kScalar),
      GroupedGemvMatMul(Isa::kScalar),
      GroupedInt8MatMul(DotIsa::kScalar),
      {"sequential", DeviceKind::kCpu, Sequential::Supports, Sequential::WorkspaceBytes,
       Sequential::Run},
      {"reference", DeviceKind::kCpu, Plain::Supports, Plain::WorkspaceBytes, Plain::Run},
  }};
  return kernels;
}

}  // namespace tandem::cpu
