// Matrix product straight from the equation of core/ops/matmul.h.
//
// Algorithm: one dot product per output element, k ascending, one f32 accumulator. It is the naive
// same-precision implementation of the numerics contract, and the fallback for whatever the fast
// kernels decline.
// Mapping: one task per strip of kStrip output features of one row; strips do not depend on the
// thread count.
// Memory: b is read M times; nothing is written but out.
// Range: every valid argument (any strides, every dtype) that brings b itself; weights that exist
// only in packed form are unreadable here.
#include <algorithm>

#include "core/status.h"
#include "cpu/blocks.h"
#include "cpu/matmul_epilogue.h"
#include "cpu/matmul_kernels.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kStrip = 64;  // output features per task

// Element k of a row that starts at `row` elements (a multiple of the block length) from `base`.
template <typename T>
float Element(const T* base, int64_t row, int64_t k, int64_t stride) {
  if constexpr (kIsBlock<T>) {
    return BlockElement(base[(row + k) / T::kLength], static_cast<int>(k % T::kLength));
  } else {
    return ToFloat(base[row + k * stride]);
  }
}

absl::Status Supports(const KernelContext&, const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("reads b itself; only b_packed was given");
  return absl::OkStatus();
}

absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  const int64_t rows = args.m(), columns = args.n(), depth = args.k();
  const int64_t strips = (columns + kStrip - 1) / kStrip;
  const MatMulOperands operands(args);

  const auto run_strip = [&]<typename A, typename B>(int64_t task) {
    const int64_t z = task / strips / rows, m = task / strips % rows;
    const int64_t begin = task % strips * kStrip, end = std::min(columns, begin + kStrip);
    const int64_t a_row = operands.a_batch * z + args.a.stride(-2) * m;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b_row = operands.b_batch * z + args.b.stride(-2) * n;
      float sum = 0;
      for (int64_t k = 0; k < depth; ++k) {
        sum += ToFloat(args.a.As<A>()[a_row + k * args.a.stride(-1)]) *
               Element(args.b.As<B>(), b_row, k, args.b.stride(-1));
      }
      StoreElement(args, operands, z, m, n, sum);
    }
  };

  DispatchFloat(args.a.dtype, [&]<typename A>() {
    DispatchWeight(args.b.dtype, [&]<typename B>() {
      CpuStream::Of(context).pool().ParallelFor(
          args.batch() * rows * strips,
          [&](int64_t task, int) { run_strip.template operator()<A, B>(task); });
    });
  });
  return absl::OkStatus();
}

}  // namespace

Kernel<MatMulArgs> ReferenceMatMul() {
  return {"reference", DeviceKind::kCpu, Supports, NoWorkspace<MatMulArgs>, Run};
}

}  // namespace tandem::cpu
