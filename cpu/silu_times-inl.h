// SwiGLU's gated activation in vectors: written once for silu_mul and for products that end with
// it. Included once per instruction set.

#if defined(TANDEM_CPU_SILU_TIMES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_SILU_TIMES_INL_H_
#undef TANDEM_CPU_SILU_TIMES_INL_H_
#else
#define TANDEM_CPU_SILU_TIMES_INL_H_
#endif

#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// silu(gate) * up. With e = exp(-|g|), silu(g) = g / (1 + e) for g >= 0 and g * e / (1 + e) below,
// so that nothing overflows and small results keep their precision.
struct SiluTimes {
  HWY_INLINE FloatVec operator()(FloatVec gate, FloatVec up) const {
    const FloatTag d;
    const FloatVec e = ExpFloats(hn::Neg(hn::Abs(gate)));
    const FloatVec numerator = hn::IfThenElse(hn::Lt(gate, hn::Zero(d)), hn::Mul(gate, e), gate);
    return hn::Mul(hn::Div(numerator, hn::Add(hn::Set(d, 1.0f), e)), up);
  }
};

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_SILU_TIMES_INL_H_
