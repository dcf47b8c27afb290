// What every MatMul kernel does with a finished sum: out = act(alpha * sum + bias) + beta * addend,
// and where the operands of batch z lie.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/ops/matmul.h"

namespace tandem::cpu {

inline float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + std::exp(-x));
    case Activation::kGelu: {
      constexpr float kSqrt2OverPi = 0.79788456080286536f;
      return 0.5f * x * (1.0f + std::tanh(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
    }
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays NaN
    case Activation::kNone:
      break;
  }
  return x;
}

// Elements from one batch to the next; 0 where the operand has one batch for all.
struct MatMulOperands {
  int64_t a_batch = 0;
  int64_t b_batch = 0;
  int64_t out_batch = 0;
  int64_t addend_batch = 0;

  explicit MatMulOperands(const MatMulArgs& args)
      : a_batch(BatchStride(args.a)),
        b_batch(BatchStride(args.b)),
        out_batch(BatchStride(args.out)),
        addend_batch(BatchStride(args.addend)) {}

  static int64_t BatchStride(const TensorView& view) {
    return view.rank() == 3 && view.dim(0) > 1 ? view.stride(0) : 0;
  }
};

// One element of a plain float view, and its counterpart.
inline float LoadAsFloat(const TensorView& view, int64_t offset) {
  return DispatchFloat(view.dtype, [&]<typename T>() { return ToFloat(view.As<T>()[offset]); });
}
inline void StoreFromFloat(const TensorView& view, int64_t offset, float value) {
  DispatchFloat(view.dtype, [&]<typename T>() { view.As<T>()[offset] = FromFloat<T>(value); });
}

// The whole epilogue of one element, in scalar code.
inline void StoreElement(const MatMulArgs& args, const MatMulOperands& operands, int64_t z,
                         int64_t m, int64_t n, float sum) {
  float value = args.alpha * sum;
  if (args.bias.present()) value += LoadAsFloat(args.bias, args.bias.stride(0) * n);
  value = Activate(args.activation, value);
  if (args.addend.present() && args.beta != 0.0f) {
    value += args.beta *
             LoadAsFloat(args.addend, operands.addend_batch * z + args.addend.stride(-2) * m +
                                          args.addend.stride(-1) * n);
  }
  StoreFromFloat(args.out,
                 operands.out_batch * z + args.out.stride(-2) * m + args.out.stride(-1) * n, value);
}

}  // namespace tandem::cpu
