// Rotary position embedding.
//
// simd: cosines and sines of every (position, pair) are computed once per call, in f64, and rounded
// into a table in the workspace that all heads share; then each row is rotated in one pass. For the
// interleaved pairing the table repeats every cosine and alternates the sign of the sine, so that
//   out = x * cosines + (x with neighbours swapped) * sines
// needs no de-interleaving. Needs contiguous rows.
//
// reference: angle, cosine and sine in f64 for every element pair; any strides.
#include "core/ops/rope.h"

#include <array>
#include <cmath>
#include <numbers>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#ifndef TANDEM_CPU_ROPE_TABLE  // this file is compiled once per target
#define TANDEM_CPU_ROPE_TABLE
namespace tandem::cpu {
namespace {

struct RopeTable {
  int64_t rows = 0;     // positions: S, or B * S
  int64_t columns = 0;  // pairs, or 2 * pairs when interleaved
  int64_t padded_pairs = 0;
  float* cosines = nullptr;  // [rows, columns]
  float* sines = nullptr;    // [rows, columns]
  double* exact = nullptr;   // [workers, 2, padded_pairs]
};

RopeTable TakeRopeTable(Workspace& workspace, const RopeArgs& args, int workers) {
  constexpr int64_t kMaxDoubles = 8;  // of the widest vector
  RopeTable table;
  const int64_t pairs = args.inv_freq.dim(0);
  table.rows = NumRows(args.positions) * args.positions.dim(-1);
  table.columns = args.pairing == RopePairing::kHalf ? pairs : 2 * pairs;
  table.padded_pairs = (pairs + kMaxDoubles - 1) / kMaxDoubles * kMaxDoubles;
  table.cosines = workspace.Take<float>(table.rows * table.columns);
  table.sines = workspace.Take<float>(table.rows * table.columns);
  table.exact = workspace.Take<double>(workers * 2 * table.padded_pairs);
  return table;
}

// Position of row `row` of the table.
double RopePosition(const RopeArgs& args, int64_t row) {
  const TensorView& positions = args.positions;
  const int64_t tokens = positions.dim(-1);
  const int64_t sequence = positions.rank() == 2 ? row / tokens * positions.stride(0) : 0;
  return *positions.At<int32_t>(sequence + row % tokens * positions.stride(-1));
}

}  // namespace
}  // namespace tandem::cpu
#endif  // TANDEM_CPU_ROPE_TABLE

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rope.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// cos and sin of position * inv_freq[i], `pairs` of each.
void AnglesOf(double position, const float* inv_freq, int64_t pairs, double* cosines,
              double* sines) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, hn::ScalableTag<double>> df;
  constexpr int64_t kDoubles = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<double>()));
  // 2 pi = high + low: with fused multiply-add the reduced angle is exact to the last place.
  const auto high = hn::Set(d, 2.0 * std::numbers::pi);
  const auto low = hn::Set(d, 2.4492935982947064e-16);
  for (int64_t i = 0; i < pairs; i += kDoubles) {
    HWY_ALIGN float frequencies[kDoubles] = {};
    for (int64_t j = 0; j < kDoubles && i + j < pairs; ++j) frequencies[j] = inv_freq[i + j];
    const auto angle = hn::Mul(hn::Set(d, position), hn::PromoteTo(d, hn::Load(df, frequencies)));
    const auto turns = hn::Round(hn::Mul(angle, hn::Set(d, 0.5 * std::numbers::inv_pi)));
    const auto reduced = hn::NegMulAdd(turns, low, hn::NegMulAdd(turns, high, angle));
    // The scratch rows are padded to whole vectors.
    hn::StoreU(hn::Cos(d, reduced), d, cosines + i);
    hn::StoreU(hn::Sin(d, reduced), d, sines + i);
  }
}

template <typename X, typename Out>
void RotateHalf(const X* x, const float* cosines, const float* sines, Out* out, int64_t pairs) {
  int64_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const FloatVec a = LoadFloats(x + i), b = LoadFloats(x + pairs + i);
    const FloatVec c = LoadFloats(cosines + i), s = LoadFloats(sines + i);
    StoreFloats(hn::MulSub(a, c, hn::Mul(b, s)), out + i);
    StoreFloats(hn::MulAdd(a, s, hn::Mul(b, c)), out + pairs + i);
  }
  if (i < pairs) {
    const int64_t count = pairs - i;
    const FloatVec a = LoadTail(x + i, count), b = LoadTail(x + pairs + i, count);
    const FloatVec c = LoadTail(cosines + i, count), s = LoadTail(sines + i, count);
    StoreTail(hn::MulSub(a, c, hn::Mul(b, s)), out + i, count);
    StoreTail(hn::MulAdd(a, s, hn::Mul(b, c)), out + pairs + i, count);
  }
}

template <typename X, typename Out>
void RotateInterleaved(const X* x, const float* cosines, const float* sines, Out* out,
                       int64_t pairs) {
  int64_t n = 0;
  if constexpr (kLanes > 1) {
    const FloatTag d;
    for (int64_t count; n < 2 * pairs; n += count) {
      count = std::min(kLanes, 2 * pairs - n);
      const bool whole = count == kLanes;
      const FloatVec v = whole ? LoadFloats(x + n) : LoadTail(x + n, count);
      const FloatVec c = whole ? LoadFloats(cosines + n) : LoadTail(cosines + n, count);
      const FloatVec s = whole ? LoadFloats(sines + n) : LoadTail(sines + n, count);
      const FloatVec rotated = hn::MulAdd(v, c, hn::Mul(hn::Reverse2(d, v), s));
      if (whole) {
        StoreFloats(rotated, out + n);
      } else {
        StoreTail(rotated, out + n, count);
      }
    }
  } else {
    for (; n < 2 * pairs; n += 2) {
      const float a = ToFloat(x[n]), b = ToFloat(x[n + 1]);
      out[n] = FromFloat<Out>(a * cosines[n] + b * sines[n]);
      out[n + 1] = FromFloat<Out>(b * cosines[n + 1] + a * sines[n + 1]);
    }
  }
}

absl::Status Rope(const KernelContext& context, const RopeArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  if (x.empty()) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  const RopeTable table = TakeRopeTable(*context.workspace, args, pool.size());
  if (!context.workspace->ok()) return absl::InternalError("rope: workspace too small");
  const bool half = args.pairing == RopePairing::kHalf;
  const int64_t pairs = args.inv_freq.dim(0);
  const int64_t tokens = x.dim(2);

  ParallelRows(pool, table.rows, table.columns, [&](int64_t begin, int64_t end, int worker) {
    double* exact_cosines = table.exact + worker * 2 * table.padded_pairs;
    double* exact_sines = exact_cosines + table.padded_pairs;
    for (int64_t t = begin; t < end; ++t) {
      AnglesOf(RopePosition(args, t), args.inv_freq.As<float>(), pairs, exact_cosines, exact_sines);
      float* cosines = table.cosines + t * table.columns;
      float* sines = table.sines + t * table.columns;
      for (int64_t i = 0; i < pairs; ++i) {
        const float cosine = static_cast<float>(args.magnitude * exact_cosines[i]);
        const float sine = static_cast<float>(args.magnitude * exact_sines[i]);
        if (half) {
          cosines[i] = cosine;
          sines[i] = sine;
        } else {
          cosines[2 * i] = cosines[2 * i + 1] = cosine;
          sines[2 * i] = -sine;
          sines[2 * i + 1] = sine;
        }
      }
    }
  });

  DispatchFloat(x.dtype, [&]<typename X>() {
    DispatchFloat(out.dtype, [&]<typename Out>() {
      ParallelRows(pool, NumRows(x), x.dim(3), [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          const X* x_row = x.At<X>(RowOffset(x, r));
          Out* out_row = out.At<Out>(RowOffset(out, r));
          const int64_t sequence = args.positions.rank() == 2 ? r / tokens / x.dim(1) : 0;
          const int64_t entry = (sequence * tokens + r % tokens) * table.columns;
          if (half) {
            RotateHalf(x_row, table.cosines + entry, table.sines + entry, out_row, pairs);
          } else {
            RotateInterleaved(x_row, table.cosines + entry, table.sines + entry, out_row, pairs);
          }
          ConvertSpan(x_row + 2 * pairs, out_row + 2 * pairs, x.dim(3) - 2 * pairs);
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
  TakeRopeTable(workspace, args, CpuStream::Of(context).pool().size());
  return workspace.bytes_used();
}

absl::Status RunReference(const KernelContext&, const RopeArgs& args) {
  const TensorView& x = args.x;
  const TensorView& out = args.out;
  const int64_t pairs = args.inv_freq.dim(0);
  const bool half = args.pairing == RopePairing::kHalf;
  for (int64_t b = 0; b < x.dim(0); ++b) {
    for (int64_t h = 0; h < x.dim(1); ++h) {
      for (int64_t s = 0; s < x.dim(2); ++s) {
        const int64_t x_row = b * x.stride(0) + h * x.stride(1) + s * x.stride(2);
        const int64_t out_row = b * out.stride(0) + h * out.stride(1) + s * out.stride(2);
        const int64_t position_offset =
            s * args.positions.stride(-1) +
            (args.positions.rank() == 2 ? b * args.positions.stride(0) : 0);
        const double position = *args.positions.At<int32_t>(position_offset);
        for (int64_t i = 0; i < pairs; ++i) {
          const double angle = position * *args.inv_freq.At<float>(i * args.inv_freq.stride(0));
          const double cosine = args.magnitude * std::cos(angle);
          const double sine = args.magnitude * std::sin(angle);
          const int64_t a = half ? i : 2 * i;
          const int64_t c = half ? i + pairs : 2 * i + 1;
          const double x_a = LoadElement(x, x_row + a * x.stride(3));
          const double x_c = LoadElement(x, x_row + c * x.stride(3));
          StoreElement(out, out_row + a * out.stride(3),
                       static_cast<float>(x_a * cosine - x_c * sine));
          StoreElement(out, out_row + c * out.stride(3),
                       static_cast<float>(x_a * sine + x_c * cosine));
        }
        for (int64_t d = 2 * pairs; d < x.dim(3); ++d) {
          StoreElement(out, out_row + d * out.stride(3), LoadElement(x, x_row + d * x.stride(3)));
        }
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
