// Conversion between element types, quantisation and dequantisation.
//
// reference: one element, or one block of 32, at a time.
#include "core/ops/cast.h"

#include <array>

#include "cpu/blocks.h"
#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

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
  static constexpr std::array<Kernel<CastArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<CastArgs>, NoWorkspace<CastArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
