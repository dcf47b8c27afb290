// SwiGLU's gated activation.
//
// simd: one pass (silu_times-inl.h). Spans of a row are independent tasks; three streams of memory.
// Needs contiguous rows, and gate and up of one dtype.
//
// reference: one element at a time in f64; any strides and dtypes.
#include "core/ops/silu_mul.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/silu_mul.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"
#include "cpu/silu_times-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

absl::Status SiluMul(const KernelContext& context, const SiluMulArgs& args) {
  DispatchFloat(args.gate.dtype, [&]<typename X>() {
    DispatchFloat(args.out.dtype, [&]<typename Out>() {
      ParallelSpans(CpuStream::Of(context).pool(), args.out.dim(0), args.out.dim(1),
                    [&](int64_t r, int64_t begin, int64_t end) {
                      CombineSpans(args.gate.At<X>(r * args.gate.stride(0) + begin),
                                   args.up.At<X>(r * args.up.stride(0) + begin),
                                   args.out.At<Out>(r * args.out.stride(0) + begin), end - begin,
                                   SiluTimes());
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
absl::Status Supports(const KernelContext& context, const SiluMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("gate", args.gate));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("up", args.up));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("out", args.out));
  return CheckSameDType("gate", args.gate, "up", args.up);
}

absl::Status RunReference(const KernelContext&, const SiluMulArgs& args) {
  const TensorView& gate = args.gate;
  const TensorView& up = args.up;
  const TensorView& out = args.out;
  for (int64_t r = 0; r < out.dim(0); ++r) {
    for (int64_t n = 0; n < out.dim(1); ++n) {
      const double g = LoadElement(gate, r * gate.stride(0) + n * gate.stride(1));
      const double u = LoadElement(up, r * up.stride(0) + n * up.stride(1));
      StoreElement(out, r * out.stride(0) + n * out.stride(1),
                   static_cast<float>(g / (1.0 + std::exp(-g)) * u));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<SiluMulArgs> Kernels<SiluMulArgs>() {
  static constexpr std::array<Kernel<SiluMulArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<SiluMulArgs>,
       N_AVX3::SiluMul},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<SiluMulArgs>,
       N_AVX2::SiluMul},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<SiluMulArgs>,
       TANDEM_N_SCALAR::SiluMul},
      {"reference", DeviceKind::kCpu, SupportsAll<SiluMulArgs>, NoWorkspace<SiluMulArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
