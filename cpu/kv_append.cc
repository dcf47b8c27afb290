// Writes new keys and values into a cache.
//
// simd: one pass of conversions; the rows of one (sequence, head) are neighbours on both sides.
// Each new element is read once and written once. Needs contiguous rows.
//
// reference: one element at a time; any strides.
#include "core/ops/kv_append.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kv_append.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

void AppendRows(ThreadPool& pool, const TensorView& x, const TensorView& cache, int64_t position) {
  const TensorView target = Slice(cache, 2, position, x.dim(2));
  if (x.empty()) return;
  DispatchFloat(x.dtype, [&]<typename X>() {
    DispatchFloat(target.dtype, [&]<typename Out>() {
      ParallelRows(pool, NumRows(x), x.dim(3), [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          ConvertSpan(x.At<X>(RowOffset(x, r)), target.At<Out>(RowOffset(target, r)), x.dim(3));
        }
      });
    });
  });
}

absl::Status KvAppend(const KernelContext& context, const KvAppendArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  AppendRows(pool, args.k, args.k_cache, args.position);
  AppendRows(pool, args.v, args.v_cache, args.position);
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("v", args.v));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("k_cache", args.k_cache));
  return CheckUnitStride("v_cache", args.v_cache);
}

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
  static constexpr std::array<Kernel<KvAppendArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<KvAppendArgs>,
       N_AVX3::KvAppend},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<KvAppendArgs>,
       N_AVX2::KvAppend},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<KvAppendArgs>,
       TANDEM_N_SCALAR::KvAppend},
      {"reference", DeviceKind::kCpu, SupportsAll<KvAppendArgs>, NoWorkspace<KvAppendArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
