// The machine's own limits, measured: what every benchmark's figure is divided by.
//
// Read bandwidth: each thread sums its own contiguous share with one vector load per 64 bytes and
// enough independent accumulators to never wait for an add. FMA rate: independent chains of
// multiply-adds in registers, enough to cover the latency of two FMA units (4 cycles x 2 units = 8;
// 12 leaves a margin). The best of several passes is reported: noise on a shared machine only ever
// slows a pass down.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/measure.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_NOINLINE float SumFloats(const float* HWY_RESTRICT data, int64_t count) {
  const hn::ScalableTag<float> d;
  const int64_t n = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * n <= count; i += 4 * n) {
    s0 = hn::Add(s0, hn::LoadU(d, data + i));
    s1 = hn::Add(s1, hn::LoadU(d, data + i + n));
    s2 = hn::Add(s2, hn::LoadU(d, data + i + 2 * n));
    s3 = hn::Add(s3, hn::LoadU(d, data + i + 3 * n));
  }
  float tail = 0.0f;
  for (; i < count; ++i) tail += data[i];
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)))) + tail;
}

// Returns the number of floating-point operations; *sink keeps the work alive. The chains start
// from different values: of equal ones the compiler would compute only one.
HWY_NOINLINE double FmaChains(int64_t iterations, float* sink) {
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

#if HWY_ONCE

#include <time.h>

#include <algorithm>

#include "core/buffer.h"
#include "cpu/backend.h"
#include "cpu/thread_pool.h"

namespace tandem::cpu {
namespace {

// Time of this thread's processor when it works alone (what other processes take away does not
// count), else of the clock.
double Seconds(int threads) {
  timespec now = {};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A result nobody reads must still be computed.
void Keep(float value) { asm volatile("" : : "x"(value) : "memory"); }

}  // namespace

double MeasureReadBandwidth(int threads, int64_t bytes) {
  const auto allocator = MakeHostAllocator();
  const int64_t per_thread = std::max<int64_t>(bytes / std::max(threads, 1) / 4, 1024);
  auto buffer = allocator->Allocate(per_thread * threads * 4);
  if (!buffer.ok()) return 0.0;
  float* data = static_cast<float*>((*buffer)->data());
  ThreadPool pool(threads);
  pool.ParallelFor(threads,
                   [&](int64_t i, int) { std::fill_n(data + i * per_thread, per_thread, 1.0f); });
  const Isa isa = DetectCpu().isa;
  const auto sum = isa == Isa::kAvx512 ? N_AVX3::SumFloats
                   : isa == Isa::kAvx2 ? N_AVX2::SumFloats
                                       : TANDEM_N_SCALAR::SumFloats;
  // Small working sets are swept repeatedly within one pass, so that a pass is never too short to
  // time.
  const int64_t sweeps = std::max<int64_t>(1, (int64_t{64} << 20) / (per_thread * threads * 4));
  double best = 0.0;
  const double begin = Seconds(threads);
  for (int pass = 0; pass < 12 && (pass < 3 || Seconds(threads) - begin < 0.6); ++pass) {
    const double start = Seconds(threads);
    pool.ParallelFor(threads, [&](int64_t i, int) {
      for (int64_t s = 0; s < sweeps; ++s) Keep(sum(data + i * per_thread, per_thread));
    });
    const double rate =
        static_cast<double>(sweeps * per_thread * threads * 4) / (Seconds(threads) - start) * 1e-9;
    best = std::max(best, rate);
  }
  return best;
}

double MeasureFmaRate(int threads, Isa isa) {
  ThreadPool pool(threads);
  const auto chains = isa == Isa::kAvx512 ? N_AVX3::FmaChains
                      : isa == Isa::kAvx2 ? N_AVX2::FmaChains
                                          : TANDEM_N_SCALAR::FmaChains;
  const int64_t iterations = isa == Isa::kScalar ? 2'000'000 : 4'000'000;
  double best = 0.0;
  for (int pass = 0; pass < 5; ++pass) {
    std::atomic<double> total{0.0};
    const double start = Seconds(threads);
    pool.ParallelFor(threads, [&](int64_t, int) {
      float sink = 0.5f;
      const double flops = chains(iterations, &sink);
      Keep(sink);
      total.fetch_add(flops);
    });
    best = std::max(best, total.load() / (Seconds(threads) - start) * 1e-9);
  }
  return best;
}

}  // namespace tandem::cpu

#endif  // HWY_ONCE
