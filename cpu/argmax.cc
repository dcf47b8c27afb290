// Index of the largest element of each row.
//
// simd: one pass over each row, in blocks: the maximum of a block (NaN counting as -inf) and, where
// it beats all blocks before, the block's place; then the first equal element of that block. Rows
// are independent tasks. Needs contiguous rows.
//
// reference: one pass over each row; any strides.
#include "core/ops/argmax.h"

#include <array>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/argmax.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

template <typename X>
int64_t ArgMaxRow(const X* x, int64_t columns) {
  constexpr int64_t kBlock = 512;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const FloatTag d;
  const FloatVec lowest = hn::Set(d, kLowest);
  float best = kLowest;
  int64_t best_block = 0;
  for (int64_t block = 0; block < columns; block += kBlock) {
    const int64_t end = std::min(columns, block + kBlock);
    FloatVec maximum = lowest;
    int64_t n = block;
    for (; n + kLanes <= end; n += kLanes) {
      const FloatVec v = LoadFloats(x + n);
      maximum = hn::IfThenElse(hn::Gt(v, maximum), v, maximum);  // false for NaN
    }
    float value = hn::GetLane(hn::MaxOfLanes(d, maximum));
    for (; n < end; ++n) value = ToFloat(x[n]) > value ? ToFloat(x[n]) : value;
    if (value > best) {
      best = value;
      best_block = block;
    }
  }
  for (int64_t n = best_block; n < columns; ++n) {
    if (ToFloat(x[n]) == best) return n;
  }
  return 0;  // only NaN
}

absl::Status ArgMax(const KernelContext& context, const ArgMaxArgs& args) {
  const TensorView& x = args.x;
  DispatchFloat(x.dtype, [&]<typename X>() {
    ParallelRows(CpuStream::Of(context).pool(), x.dim(0), x.dim(1),
                 [&](int64_t begin, int64_t end, int) {
                   for (int64_t r = begin; r < end; ++r) {
                     *args.out.At<int32_t>(r * args.out.stride(0)) =
                         static_cast<int32_t>(ArgMaxRow(x.At<X>(r * x.stride(0)), x.dim(1)));
                   }
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
absl::Status Supports(const KernelContext& context, const ArgMaxArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  return CheckUnitStride("x", args.x);
}

absl::Status RunReference(const KernelContext&, const ArgMaxArgs& args) {
  const TensorView& x = args.x;
  for (int64_t r = 0; r < x.dim(0); ++r) {
    int64_t best = -1;
    float best_value = 0.0f;
    for (int64_t n = 0; n < x.dim(1); ++n) {
      const float value = LoadElement(x, r * x.stride(0) + n * x.stride(1));
      if (std::isnan(value)) continue;
      if (best < 0 || value > best_value) {
        best = n;
        best_value = value;
      }
    }
    *args.out.At<int32_t>(r * args.out.stride(0)) = best < 0 ? 0 : static_cast<int32_t>(best);
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<ArgMaxArgs> Kernels<ArgMaxArgs>() {
  static constexpr std::array<Kernel<ArgMaxArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<ArgMaxArgs>,
       N_AVX3::ArgMax},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<ArgMaxArgs>,
       N_AVX2::ArgMax},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<ArgMaxArgs>,
       TANDEM_N_SCALAR::ArgMax},
      {"reference", DeviceKind::kCpu, SupportsAll<ArgMaxArgs>, NoWorkspace<ArgMaxArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
