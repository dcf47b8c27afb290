#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/yardsticks.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "bench/yardsticks.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::bench::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kFmaSteps = 30'000;  // of 10 chains: more than latency 4 times 2 units
constexpr int64_t kSweeps = 30;        // over the memory

constexpr int64_t Lanes() { return static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<float>())); }
constexpr double kFmaWork = 2.0 * 10.0 * static_cast<double>(kFmaSteps * Lanes());
constexpr double kMemoryWork = static_cast<double>(kSweeps * kYardstickBytes);

HWY_NOINLINE void Fma(float* memory) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.5f), b = hn::Set(d, 1e-9f);
  // Different starting values: of equal chains the compiler would compute one.
  auto c0 = hn::Load(d, memory), c1 = hn::Add(c0, b), c2 = hn::Add(c1, b), c3 = hn::Add(c2, b),
       c4 = hn::Add(c3, b), c5 = hn::Add(c4, b), c6 = hn::Add(c5, b), c7 = hn::Add(c6, b),
       c8 = hn::Add(c7, b), c9 = hn::Add(c8, b);
  for (int64_t i = 0; i < kFmaSteps; ++i) {
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
  }
  const auto x = hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)), hn::Add(c4, c5));
  hn::Store(hn::Add(x, hn::Add(hn::Add(c6, c7), hn::Add(c8, c9))), d, memory);
}

HWY_NOINLINE void Read(float* memory) {
  const hn::ScalableTag<float> d;
  const int64_t n = Lanes();
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t sweep = 0; sweep < kSweeps; ++sweep) {
    for (int64_t i = 0; i < kYardstickBytes / 4; i += 4 * n) {
      s0 = hn::Add(s0, hn::Load(d, memory + i));
      s1 = hn::Add(s1, hn::Load(d, memory + i + n));
      s2 = hn::Add(s2, hn::Load(d, memory + i + 2 * n));
      s3 = hn::Add(s3, hn::Load(d, memory + i + 3 * n));
    }
  }
  // Halved again and again, lest it overflow some day.
  hn::Store(hn::Mul(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Set(d, 1e-9f)), d, memory);
}

HWY_NOINLINE void Fill(float* memory) {
  const hn::ScalableTag<float> d;
  const int64_t n = Lanes();
  for (int64_t sweep = 0; sweep < kSweeps; ++sweep) {
    const auto x = hn::Set(d, static_cast<float>(sweep + 1) * 1e-3f);
    for (int64_t i = 0; i < kYardstickBytes / 4; i += 2 * n) {
      hn::Store(x, d, memory + i);
      hn::Store(x, d, memory + i + n);
    }
    asm volatile("" : : : "memory");  // every sweep counts
  }
}

std::vector<Yardstick> All() {
  return {{"fma", kFmaWork, Fma}, {"read", kMemoryWork, Read}, {"fill", kMemoryWork, Fill}};
}

}  // namespace tandem::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::bench {

std::vector<Yardstick> Yardsticks(cpu::Isa isa) {
  switch (isa) {
    case cpu::Isa::kAvx512:
      return N_AVX3::All();
    case cpu::Isa::kAvx2:
      return N_AVX2::All();
    default:
      return TANDEM_N_SCALAR::All();
  }
}

}  // namespace tandem::bench

#endif  // HWY_ONCE
