// Conversion between element types, quantisation and dequantisation.
//
// simd: one pass; spans of a row (whole blocks) are independent tasks. Conversions are bit-equal to
// core/dtype.h, quantisers to blocks.h. Needs contiguous rows.
//
// reference: one element, or one block of 32, at a time; any strides.
#include "core/ops/cast.h"

#include <array>

#include "cpu/blocks.h"
#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/cast.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/block_vectors-inl.h"
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

void Expand(ThreadPool& pool, const CastArgs& args) {
  DispatchBlock(args.x.dtype, [&]<typename Block>() {
    ParallelSpans(pool, args.x.dim(0), args.x.dim(1), [&](int64_t r, int64_t begin, int64_t end) {
      const Block* blocks = BlockRow<Block>(args.x, r);
      float* out = args.out.At<float>(r * args.out.stride(0));
      for (int64_t n = begin; n < end; n += Block::kLength) {
        DequantizeBlockTo(blocks[n / Block::kLength], out + n);
      }
    });
  });
}

void Compress(ThreadPool& pool, const CastArgs& args) {
  DispatchBlock(args.out.dtype, [&]<typename Block>() {
    ParallelSpans(pool, args.x.dim(0), args.x.dim(1), [&](int64_t r, int64_t begin, int64_t end) {
      const float* x = args.x.At<float>(r * args.x.stride(0));
      Block* blocks = BlockRow<Block>(args.out, r);
      QuantizeBlocksFrom(x + begin, blocks + begin / Block::kLength,
                         (end - begin) / Block::kLength);
    });
  });
}

absl::Status Cast(const KernelContext& context, const CastArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  if (IsBlockQuantized(args.x.dtype)) {
    Expand(pool, args);
  } else if (IsBlockQuantized(args.out.dtype)) {
    Compress(pool, args);
  } else {
    DispatchFloat(args.x.dtype, [&]<typename X>() {
      DispatchFloat(args.out.dtype, [&]<typename Out>() {
        ParallelSpans(pool, args.x.dim(0), args.x.dim(1),
                      [&](int64_t r, int64_t begin, int64_t end) {
                        ConvertSpan(args.x.At<X>(r * args.x.stride(0) + begin),
                                    args.out.At<Out>(r * args.out.stride(0) + begin), end - begin);
                      });
      });
    });
  }
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const CastArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("x", args.x));
  return CheckUnitStride("out", args.out);
}

void Quantize(const CastArgs& args) {
  DispatchBlock(args.out.dtype, [&]<typename Block>() {
    for (int64_t r = 0; r < args.x.dim(0); ++r) {
      for (int64_t n = 0; n < args.x.dim(1); n += Block::kLength) {
        float values[Block::kLength];
        for (int i = 0; i < Block::kLength; ++i) {
          values[i] = LoadElement(args.x, r * args.x.stride(0) + (n + i) * args.x.stride(1));
        }
        QuantizeBlock(values, BlockRow<Block>(args.out, r)[n / Block::kLength]);
      }
    }
  });
}

void Dequantize(const CastArgs& args) {
  DispatchBlock(args.x.dtype, [&]<typename Block>() {
    for (int64_t r = 0; r < args.x.dim(0); ++r) {
      for (int64_t n = 0; n < args.x.dim(1); n += Block::kLength) {
        float values[Block::kLength];
        DequantizeBlock(BlockRow<Block>(args.x, r)[n / Block::kLength], values);
        for (int i = 0; i < Block::kLength; ++i) {
          StoreElement(args.out, r * args.out.stride(0) + (n + i) * args.out.stride(1), values[i]);
        }
      }
    }
  });
}

absl::Status RunReference(const KernelContext&, const CastArgs& args) {
  if (IsBlockQuantized(args.x.dtype)) {
    Dequantize(args);
  } else if (IsBlockQuantized(args.out.dtype)) {
    Quantize(args);
  } else {
    const TensorView& x = args.x;
    const TensorView& out = args.out;
    for (int64_t r = 0; r < x.dim(0); ++r) {
      for (int64_t n = 0; n < x.dim(1); ++n) {
        StoreElement(out, r * out.stride(0) + n * out.stride(1),
                     LoadElement(x, r * x.stride(0) + n * x.stride(1)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<CastArgs> Kernels<CastArgs>() {
  static constexpr std::array<Kernel<CastArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<CastArgs>,
       N_AVX3::Cast},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<CastArgs>, N_AVX2::Cast},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<CastArgs>,
       TANDEM_N_SCALAR::Cast},
      {"reference", DeviceKind::kCpu, SupportsAll<CastArgs>, NoWorkspace<CastArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
