// Root-mean-square normalisation of rows.
//
// simd: two passes over each row, which stays in the core's cache between them: sum of squares,
// then the product. Rows are independent tasks; x is read once from memory, out
// written once. Needs contiguous rows and weights.
//
// reference: the same two passes in f64; any strides.
#include "core/ops/rms_norm.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rms_norm.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Sum of squares. f32 within blocks, f64 across them: a long row's sum would lose bits with the few
// lanes of the narrow targets.
template <typename X>
double SumOfSquares(const X* x, int64_t columns) {
  constexpr int64_t kBlock = 64 * kLanes;
  const FloatTag d;
  double total = 0.0;
  for (int64_t n = 0; n < columns;) {
    const int64_t end = std::min(columns, n + kBlock);
    FloatVec sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
    for (; n + 4 * kLanes <= end; n += 4 * kLanes) {
      const FloatVec x0 = LoadFloats(x + n);
      const FloatVec x1 = LoadFloats(x + n + kLanes);
      const FloatVec x2 = LoadFloats(x + n + 2 * kLanes);
      const FloatVec x3 = LoadFloats(x + n + 3 * kLanes);
      sum0 = hn::MulAdd(x0, x0, sum0);
      sum1 = hn::MulAdd(x1, x1, sum1);
      sum2 = hn::MulAdd(x2, x2, sum2);
      sum3 = hn::MulAdd(x3, x3, sum3);
    }
    for (int64_t count; n < end; n += count) {
      count = std::min(kLanes, end - n);
      const FloatVec v = LoadTail(x + n, count);
      sum0 = hn::MulAdd(v, v, sum0);
    }
    const FloatVec sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

template <typename X, typename W, typename Out>
void NormRow(const X* x, const W* weight, Out* out, int64_t columns, float eps) {
  const FloatTag d;
  const double mean = SumOfSquares(x, columns) / static_cast<double>(columns);
  const FloatVec inverse = hn::Set(d, static_cast<float>(1.0 / std::sqrt(mean + eps)));
  int64_t n = 0;
  for (; n + kLanes <= columns; n += kLanes) {
    StoreFloats(hn::Mul(hn::Mul(LoadFloats(x + n), inverse), LoadFloats(weight + n)), out + n);
  }
  if (n < columns) {
    const FloatVec v = hn::Mul(LoadTail(x + n, columns - n), inverse);
    StoreTail(hn::Mul(v, LoadTail(weight + n, columns - n)), out + n, columns - n);
  }
}

absl::Status RmsNorm(const KernelContext& context, const RmsNormArgs& args) {
  if (args.x.empty()) return absl::OkStatus();
  const int64_t columns = args.x.dim(-1);
  DispatchFloat(args.x.dtype, [&]<typename X>() {
    DispatchFloat(args.weight.dtype, [&]<typename W>() {
      DispatchFloat(args.out.dtype, [&]<typename Out>() {
        ParallelRows(CpuStream::Of(context).pool(), NumRows(args.x), columns,
                     [&](int64_t begin, int64_t end, int) {
                       for (int64_t r = begin; r < end; ++r) {
                         NormRow(args.x.At<X>(RowOffset(args.x, r)), args.weight.As<W>(),
                                 args.out.At<Out>(RowOffset(args.out, r)), columns, args.eps);
                       }
                     });
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
absl::Status Supports(const KernelContext& context, const RmsNormArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("x", args.x));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("weight", args.weight));
  return CheckUnitStride("out", args.out);
}

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
  static constexpr std::array<Kernel<RmsNormArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<RmsNormArgs>,
       N_AVX3::RmsNorm},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<RmsNormArgs>,
       N_AVX2::RmsNorm},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<RmsNormArgs>,
       TANDEM_N_SCALAR::RmsNorm},
      {"reference", DeviceKind::kCpu, SupportsAll<RmsNormArgs>, NoWorkspace<RmsNormArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
