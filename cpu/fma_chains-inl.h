// The multiply-add rate of a core: independent chains of multiply-adds in registers, enough to
// cover the latency of two units (4 cycles x 2 units = 8; 12 leaves a margin). For cpu/measure.cc
// and the yardsticks of bench/. Compiled once per target.
#if defined(TANDEM_CPU_FMA_CHAINS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_FMA_CHAINS_INL_H_
#undef TANDEM_CPU_FMA_CHAINS_INL_H_
#else
#define TANDEM_CPU_FMA_CHAINS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Returns the number of floating-point operations; *sink keeps the work alive. The chains start
// from different values: of equal ones the compiler would compute only one.
HWY_NOINLINE inline double FmaChains(int64_t iterations, float* sink) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, *sink);
  const auto b = hn::Set(d, 1e-9f);
  auto c0 = a, c1 = hn::Add(c0, b), c2 = hn::Add(c1, b), c3 = hn::Add(c2, b), c4 = hn::Add(c3, b),
       c5 = hn::Add(c4, b), c6 = hn::Add(c5, b), c7 = hn::Add(c6, b), c8 = hn::Add(c7, b),
       c9 = hn::Add(c8, b), c10 = hn::Add(c9, b), c11 = hn::Add(c10, b);
  for (int64_t i = 0; i < iterations; ++i) {
    c0 = hn::MulAdd(c0, a, b);
    c1 = hn::MulAdd(c1, a, b);
    c2 = hn::MulAdd(c2, a, b);
    c3 = hn::MulAdd(c3, a, b);
    c4 = hn::MulAdd(c4, a, b);
    c5 = hn::MulAdd(c5, a, b);
    c6 = hn::MulAdd(c6, a, b);
    c7 = hn::MulAdd(c7, a, b);
    c8 = hn::MulAdd(c8, a, b);
    c9 = hn::MulAdd(c9, a, b);
    c10 = hn::MulAdd(c10, a, b);
    c11 = hn::MulAdd(c11, a, b);
  }
  const auto x = hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)), hn::Add(c4, c5));
  const auto y = hn::Add(hn::Add(hn::Add(c6, c7), hn::Add(c8, c9)), hn::Add(c10, c11));
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(x, y)));
  return static_cast<double>(iterations) * 12.0 * 2.0 * static_cast<double>(hn::Lanes(d));
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
