// Root-mean-square normalisation of rows.
//
// simd: two passes over each row, which stays in the core's cache between them: sum of squares
// (with a residual: of the sum, which is written on the way), then the product. Rows are
// independent tasks; every input is read once from memory, every output written once. Needs
// contiguous rows and weights, and x and residual of one dtype.
//
// reference: the same two passes in f64; any strides.
#include "core/ops/rms_norm.h"

#include <array>
#include <cmath>
#include <type_traits>

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
// load(n, count) gives elements n .. n + count - 1 as a vector, count <= kLanes.
template <typename Load>
double SumOfSquares(int64_t columns, Load load) {
  constexpr int64_t kBlock = 64 * kLanes;
  const FloatTag d;
  double total = 0.0;
  for (int64_t n = 0; n < columns;) {
    const int64_t end = std::min(columns, n + kBlock);
    FloatVec sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
    for (; n + 4 * kLanes <= end; n += 4 * kLanes) {
      const FloatVec x0 = load(n, kLanes);
      const FloatVec x1 = load(n + kLanes, kLanes);
      const FloatVec x2 = load(n + 2 * kLanes, kLanes);
      const FloatVec x3 = load(n + 3 * kLanes, kLanes);
      sum0 = hn::MulAdd(x0, x0, sum0);
      sum1 = hn::MulAdd(x1, x1, sum1);
      sum2 = hn::MulAdd(x2, x2, sum2);
      sum3 = hn::MulAdd(x3, x3, sum3);
    }
    for (int64_t count; n < end; n += count) {
      count = std::min(kLanes, end - n);
      const FloatVec v = load(n, count);
      sum0 = hn::MulAdd(v, v, sum0);
    }
    const FloatVec sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

template <typename T>
HWY_INLINE FloatVec LoadSome(const T* p, int64_t count) {
  return count == kLanes ? LoadFloats(p) : LoadTail(p, count);
}

// sum = x + residual; the squares are those of the rounded sum.
template <typename X, typename Sum>
double AddAndSquare(const X* x, const X* residual, Sum* sum, int64_t columns) {
  return SumOfSquares(columns, [=](int64_t n, int64_t count) HWY_ATTR {
    const FloatVec total = hn::Add(LoadSome(x + n, count), LoadSome(residual + n, count));
    if (count == kLanes) {
      StoreFloats(total, sum + n);
    } else {
      StoreTail(total, sum + n, count);
    }
    if constexpr (std::is_same_v<Sum, float>) return total;
    return LoadSome(sum + n, count);
  });
}

// out = x * inverse * weight
template <typename X, typename W, typename Out>
void ScaleRow(const X* x, float inverse, const W* weight, Out* out, int64_t columns) {
  const FloatVec by = hn::Set(FloatTag(), inverse);
  int64_t n = 0;
  for (; n + kLanes <= columns; n += kLanes) {
    StoreFloats(hn::Mul(hn::Mul(LoadFloats(x + n), by), LoadFloats(weight + n)), out + n);
  }
  if (n < columns) {
    const FloatVec v = hn::Mul(LoadTail(x + n, columns - n), by);
    StoreTail(hn::Mul(v, LoadTail(weight + n, columns - n)), out + n, columns - n);
  }
}

// Squares of row r of x, or of the sum, which it writes.
double SquaresOf(const RmsNormArgs& args, int64_t r) {
  const int64_t columns = args.x.dim(-1);
  return DispatchFloat(args.x.dtype, [&]<typename X>() {
    const X* x = args.x.At<X>(RowOffset(args.x, r));
    if (!args.residual.present()) {
      return SumOfSquares(
          columns, [=](int64_t n, int64_t count) HWY_ATTR { return LoadSome(x + n, count); });
    }
    const X* residual = args.residual.At<X>(RowOffset(args.residual, r));
    return DispatchFloat(args.sum.dtype, [&]<typename Sum>() {
      return AddAndSquare(x, residual, args.sum.At<Sum>(RowOffset(args.sum, r)), columns);
    });
  });
}

absl::Status RmsNorm(const KernelContext& context, const RmsNormArgs& args) {
  if (args.x.empty()) return absl::OkStatus();
  const int64_t columns = args.x.dim(-1);
  const TensorView& x = args.residual.present() ? args.sum : args.x;  // what is normalised
  DispatchFloat(x.dtype, [&]<typename X>() {
    DispatchFloat(args.weight.dtype, [&]<typename W>() {
      DispatchFloat(args.out.dtype, [&]<typename Out>() {
        ParallelRows(CpuStream::Of(context).pool(), NumRows(x), columns,
                     [&](int64_t begin, int64_t end, int) {
                       for (int64_t r = begin; r < end; ++r) {
                         const double mean = SquaresOf(args, r) / static_cast<double>(columns);
                         ScaleRow(x.At<X>(RowOffset(x, r)),
                                  static_cast<float>(1.0 / std::sqrt(mean + args.eps)),
                                  args.weight.As<W>(), args.out.At<Out>(RowOffset(args.out, r)),
                                  columns);
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
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("out", args.out));
  if (!args.residual.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("residual", args.residual));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("sum", args.sum));
  return CheckSameDType("x", args.x, "residual", args.residual);
}

void AddRow(const RmsNormArgs& args, int64_t r) {
  const int64_t x = RowOffset(args.x, r), residual = RowOffset(args.residual, r);
  const int64_t sum = RowOffset(args.sum, r);
  for (int64_t n = 0; n < args.x.dim(-1); ++n) {
    StoreElement(args.sum, sum + n * args.sum.stride(-1),
                 LoadElement(args.x, x + n * args.x.stride(-1)) +
                     LoadElement(args.residual, residual + n * args.residual.stride(-1)));
  }
}

absl::Status RunReference(const KernelContext&, const RmsNormArgs& args) {
  if (args.x.empty()) return absl::OkStatus();
  const TensorView& x = args.residual.present() ? args.sum : args.x;  // what is normalised
  const int64_t columns = x.dim(-1);
  for (int64_t r = 0; r < NumRows(x); ++r) {
    if (args.residual.present()) AddRow(args, r);
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
