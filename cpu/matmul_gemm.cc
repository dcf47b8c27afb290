// Tiled matrix product (matmul_tiled.cc) multiplied by our own SIMD (matmul_panels_simd.cc): for
// streams limited to an instruction set below the processor's, which oneDNN does not obey per call,
// and for whatever oneDNN declines.
#include "core/status.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_pairs.h"
#include "cpu/matmul_tiled.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  if (!args.b.present() && PairsOf(args) == nullptr) {
    return Unimplemented("reads b itself, or pairs; b_packed has another format");
  }
  return CheckIsa(context, kIsa);
}

int64_t WorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  Workspace counting = Workspace::Counting();
  CarveTiled(counting, args, TiledPlan(args), CpuStream::Of(context).pool().size(),
             /*expand=*/true, /*extra_bytes=*/0);
  return counting.bytes_used();
}

template <Isa kIsa>
absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  const PanelOps& ops = PanelOpsFor(kIsa);
  const auto multiply = [&](const void* a, const void* panel, int64_t rows, float* tile, int,
                            char*) {
    ops.multiply(static_cast<const float*>(a), static_cast<const float*>(panel), rows, args.k(),
                 tile);
  };
  return RunTiled(context, args, TiledPlan(args), ops, /*packed=*/nullptr, /*extra_bytes=*/0,
                  multiply);
}

template <Isa kIsa>
Kernel<MatMulArgs> Entry(std::string_view name) {
  return {name, DeviceKind::kCpu, Supports<kIsa>, WorkspaceBytes, Run<kIsa>};
}

}  // namespace

Kernel<MatMulArgs> GemmMatMul(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return Entry<Isa::kAvx512>("gemm_avx512");
    case Isa::kAvx2:
      return Entry<Isa::kAvx2>("gemm_avx2");
    default:
      return Entry<Isa::kScalar>("gemm_scalar");
  }
}

}  // namespace tandem::cpu
