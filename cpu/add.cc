// Element-wise sum, b broadcast over rows where its extent is 1.
//
// simd: one pass; spans of a row are independent tasks; three streams of memory (two where b is
// broadcast and stays in cache). Needs contiguous rows, and a and b of one dtype.
//
// reference: one element at a time; any strides and dtypes.
#include "core/ops/add.h"

#include <array>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/add.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

struct Sum {
  HWY_INLINE FloatVec operator()(FloatVec a, FloatVec b) const { return hn::Add(a, b); }
};

absl::Status Add(const KernelContext& context, const AddArgs& args) {
  const int64_t b_stride = args.b.dim(0) == 1 ? 0 : args.b.stride(0);
  DispatchFloat(args.a.dtype, [&]<typename X>() {
    DispatchFloat(args.out.dtype, [&]<typename Out>() {
      ParallelSpans(CpuStream::Of(context).pool(), args.out.dim(0), args.out.dim(1),
                    [&](int64_t r, int64_t begin, int64_t end) {
                      CombineSpans(args.a.At<X>(r * args.a.stride(0) + begin),
                                   args.b.At<X>(r * b_stride + begin),
                                   args.out.At<Out>(r * args.out.stride(0) + begin), end - begin,
                                   Sum());
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
absl::Status Supports(const KernelContext& context, const AddArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("a", args.a));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("b", args.b));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("out", args.out));
  return CheckSameDType("a", args.a, "b", args.b);
}

absl::Status RunReference(const KernelContext&, const AddArgs& args) {
  const TensorView& a = args.a;
  const TensorView& b = args.b;
  const TensorView& out = args.out;
  const int64_t b_stride = b.dim(0) == 1 ? 0 : b.stride(0);
  for (int64_t r = 0; r < out.dim(0); ++r) {
    for (int64_t n = 0; n < out.dim(1); ++n) {
      StoreElement(out, r * out.stride(0) + n * out.stride(1),
                   LoadElement(a, r * a.stride(0) + n * a.stride(1)) +
                       LoadElement(b, r * b_stride + n * b.stride(1)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<AddArgs> Kernels<AddArgs>() {
  static constexpr std::array<Kernel<AddArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<AddArgs>, N_AVX3::Add},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<AddArgs>, N_AVX2::Add},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<AddArgs>,
       TANDEM_N_SCALAR::Add},
      {"reference", DeviceKind::kCpu, SupportsAll<AddArgs>, NoWorkspace<AddArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
