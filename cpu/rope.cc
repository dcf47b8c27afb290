// Rotary position embedding.
//
// simd: a table of cosines and sines that all heads share, then one pass over the rows (see
// rope_rows-inl.h). Needs contiguous rows.
//
// reference: angle, cosine and sine in f64 for every element pair; any strides.
#include "core/ops/rope.h"

#include <array>

#include "cpu/kernels.h"
#include "cpu/rope_reference.h"
#include "cpu/rope_table.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rope.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/rope_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

absl::Status Rope(const KernelContext& context, const RopeArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  if (x.empty()) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  const RopeRotation rotation = args.rotation();
  const RopeTable table = TakeRopeTable(*context.workspace, rotation, pool.size());
  if (!context.workspace->ok()) return absl::InternalError("rope: workspace too small");
  FillRopeTable(pool, rotation, table);

  const int64_t tokens = x.dim(2);
  DispatchFloat(x.dtype, [&]<typename X>() {
    DispatchFloat(out.dtype, [&]<typename Out>() {
      ParallelRows(pool, NumRows(x), x.dim(3), [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t sequence = args.positions.rank() == 2 ? r / tokens / x.dim(1) : 0;
          RotateRow(rotation, table, sequence * tokens + r % tokens, x.At<X>(RowOffset(x, r)),
                    out.At<Out>(RowOffset(out, r)), x.dim(3));
        }
      });
    });
  });
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const RopeArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("x", args.x));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("inv_freq", args.inv_freq));
  return CheckUnitStride("out", args.out);
}

int64_t SimdWorkspace(const KernelContext& context, const RopeArgs& args) {
  Workspace workspace = Workspace::Counting();
  TakeRopeTable(workspace, args.rotation(), CpuStream::Of(context).pool().size());
  return workspace.bytes_used();
}

absl::Status RunReference(const KernelContext&, const RopeArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  for (int64_t b = 0; b < x.dim(0); ++b) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      for (int64_t s = 0; s < x.dim(2); ++s) {
        RotateRowReference(args.rotation(), b, s, x,
                           b * x.stride(0) + h * x.stride(1) + s * x.stride(2), out,
                           b * out.stride(0) + h * out.stride(1) + s * out.stride(2));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<RopeArgs> Kernels<RopeArgs>() {
  static constexpr std::array<Kernel<RopeArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, SimdWorkspace, N_AVX3::Rope},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, SimdWorkspace, N_AVX2::Rope},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, SimdWorkspace,
       TANDEM_N_SCALAR::Rope},
      {"reference", DeviceKind::kCpu, SupportsAll<RopeArgs>, NoWorkspace<RopeArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
