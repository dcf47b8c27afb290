// The machine's own limits, measured: what every benchmark's figure is divided by.
//
// Read bandwidth: each thread sums its own contiguous share with one vector load per 64 bytes and
// enough independent accumulators to never wait for an add. FMA rate: fma_chains-inl.h. The best of
// several passes is reported: noise on a shared machine only ever slows a pass down.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/measure.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <cstdint>

#include "cpu/fma_chains-inl.h"

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
