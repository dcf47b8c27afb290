// Row softmax.
//
// simd: two passes over x (maximum; exponentials and their sum) and one over f32 exponentials that
// are kept in out itself (f32) or in one row of scratch per thread (f16, bf16). Rows are
// independent tasks. A row that fits the core's cache costs one read and one write of memory. Needs
// contiguous rows.
//
// reference: three passes over each row in f64; any strides.
#include "core/ops/softmax.h"

#include <array>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/softmax.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// max(scale * x). What a NaN does to it does not matter: the sum will be NaN.
template <typename X>
float ScaledMaximum(const X* x, int64_t columns, float scale) {
  const FloatTag d;
  const FloatVec scales = hn::Set(d, scale);
  const FloatVec lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  FloatVec max0 = lowest, max1 = lowest;
  int64_t n = 0;
  for (; n + 2 * kLanes <= columns; n += 2 * kLanes) {
    max0 = hn::Max(max0, hn::Mul(LoadFloats(x + n), scales));
    max1 = hn::Max(max1, hn::Mul(LoadFloats(x + n + kLanes), scales));
  }
  for (; n + kLanes <= columns; n += kLanes) {
    max0 = hn::Max(max0, hn::Mul(LoadFloats(x + n), scales));
  }
  float result = hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
  for (; n < columns; ++n) result = std::max(result, scale * ToFloat(x[n]));
  return result;
}

// out = exp(scale * x - shift); returns the sum. f32 within blocks, f64 across them: a long row's
// sum would lose bits with the few lanes of the narrow targets.
template <typename X>
double Exponentials(const X* x, float* out, int64_t columns, float scale, float shift) {
  constexpr int64_t kBlock = 64 * kLanes;
  const FloatTag d;
  const FloatVec scales = hn::Set(d, scale);
  const FloatVec shifts = hn::Set(d, shift);
  double total = 0.0;
  for (int64_t n = 0; n < columns;) {
    const int64_t end = std::min(columns, n + kBlock);
    FloatVec sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    for (; n + 2 * kLanes <= end; n += 2 * kLanes) {
      const FloatVec e0 = ExpFloats(hn::MulSub(LoadFloats(x + n), scales, shifts));
      const FloatVec e1 = ExpFloats(hn::MulSub(LoadFloats(x + n + kLanes), scales, shifts));
      StoreFloats(e0, out + n);
      StoreFloats(e1, out + n + kLanes);
      sum0 = hn::Add(sum0, e0);
      sum1 = hn::Add(sum1, e1);
    }
    for (int64_t count; n < end; n += count) {
      count = std::min(kLanes, end - n);
      const FloatVec e = ExpFloats(hn::MulSub(LoadTail(x + n, count), scales, shifts));
      StoreTail(e, out + n, count);
      const auto valid = hn::FirstN(d, static_cast<size_t>(count));
      sum1 = hn::Add(sum1, hn::IfThenElseZero(valid, e));
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1))));
  }
  return total;
}

template <typename X, typename Out>
void SoftmaxRow(const X* x, Out* out, float* scratch, int64_t columns, float scale) {
  const FloatTag d;
  const float maximum = ScaledMaximum(x, columns, scale);
  // Rows without any finite or infinite positive value: exp(-inf - 0) = 0, and no -inf - -inf.
  const float shift = maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum;
  float* exponentials = scratch;
  if constexpr (std::is_same_v<Out, float>) exponentials = out;

  const float sum = static_cast<float>(Exponentials(x, exponentials, columns, scale, shift));
  const FloatVec factor = hn::Set(d, sum == 0.0f ? 0.0f : 1.0f / sum);
  int64_t n = 0;
  for (; n + kLanes <= columns; n += kLanes) {
    StoreFloats(hn::Mul(LoadFloats(exponentials + n), factor), out + n);
  }
  if (n < columns) {
    const FloatVec e = LoadTail(exponentials + n, columns - n);
    StoreTail(hn::Mul(e, factor), out + n, columns - n);
  }
}

absl::Status Softmax(const KernelContext& context, const SoftmaxArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  const int64_t columns = args.x.dim(1);
  float* scratch = nullptr;
  if (args.out.dtype != DType::kF32) {
    scratch = context.workspace->Take<float>(pool.size() * columns);
    if (!context.workspace->ok()) return absl::InternalError("softmax: workspace too small");
  }
  DispatchFloat(args.x.dtype, [&]<typename X>() {
    DispatchFloat(args.out.dtype, [&]<typename Out>() {
      ParallelRows(pool, args.x.dim(0), columns, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t r = begin; r < end; ++r) {
          SoftmaxRow(args.x.At<X>(r * args.x.stride(0)), args.out.At<Out>(r * args.out.stride(0)),
                     scratch == nullptr ? nullptr : scratch + worker * columns, columns,
                     args.scale);
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
absl::Status Supports(const KernelContext& context, const SoftmaxArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("x", args.x));
  return CheckUnitStride("out", args.out);
}

int64_t SimdWorkspace(const KernelContext& context, const SoftmaxArgs& args) {
  if (args.out.dtype == DType::kF32) return 0;
  Workspace workspace = Workspace::Counting();
  workspace.Take<float>(CpuStream::Of(context).pool().size() * args.x.dim(1));
  return workspace.bytes_used();
}

absl::Status RunReference(const KernelContext&, const SoftmaxArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  for (int64_t r = 0; r < x.dim(0); ++r) {
    const auto value = [&](int64_t n) {
      return static_cast<double>(args.scale) *
             static_cast<double>(LoadElement(x, r * x.stride(0) + n * x.stride(1)));
    };
    double maximum = -std::numeric_limits<double>::infinity();
    bool has_nan = false;
    for (int64_t n = 0; n < x.dim(1); ++n) {
      maximum = std::fmax(maximum, value(n));
      has_nan |= std::isnan(value(n));
    }
    const bool all_masked = maximum == -std::numeric_limits<double>::infinity() && !has_nan;
    double sum = 0.0;
    for (int64_t n = 0; n < x.dim(1); ++n) sum += std::exp(value(n) - maximum);
    for (int64_t n = 0; n < x.dim(1); ++n) {
      const double y = all_masked ? 0.0 : std::exp(value(n) - maximum) / sum;
      StoreElement(out, r * out.stride(0) + n * out.stride(1), static_cast<float>(y));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<SoftmaxArgs> Kernels<SoftmaxArgs>() {
  static constexpr std::array<Kernel<SoftmaxArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, SimdWorkspace, N_AVX3::Softmax},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, SimdWorkspace, N_AVX2::Softmax},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, SimdWorkspace,
       TANDEM_N_SCALAR::Softmax},
      {"reference", DeviceKind::kCpu, SupportsAll<SoftmaxArgs>, NoWorkspace<SoftmaxArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
