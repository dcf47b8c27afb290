#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/yardsticks.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "bench/yardsticks.h"

#include "cpu/fma_chains-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::bench::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kFmaSteps = 25'000;
constexpr int64_t kSweeps = 30;  // over the memory

constexpr int64_t Lanes() { return static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<float>())); }
constexpr double kFmaWork = 2.0 * 12.0 * static_cast<double>(kFmaSteps * Lanes());  // 12 chains
constexpr double kMemoryWork = static_cast<double>(kSweeps * kYardstickBytes);

void Fma(float* memory) {
  float sink = 0.5f;
  cpu::HWY_NAMESPACE::FmaChains(kFmaSteps, &sink);
  *memory = sink;
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
