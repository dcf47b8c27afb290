// Mask creation against what the machine can store, and against the loop that it replaces, all
// measured in the same process just before.
//
//   Mask      GB_s: bytes of the mask per second. of_store: over the faster of a plain and a
//             non-temporal fill of as many bytes, on one thread. times_naive: over a scalar nested
//             loop that asks "j <= past + i" per element. The output is reused, as in a decoder:
//             page faults of fresh memory would hide everything else.
//   MaskCache ns of one hit.
#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "bench/op_runner.h"
#include "core/ops/mask.h"
#include "cpu/backend.h"
#include "dispatch/context.h"
#include "dispatch/mask_cache.h"

namespace tandem::bench {
namespace {

// Kept scalar: the loop as it is usually written and compiled, one element at a time.
#if defined(__clang__)
#define TANDEM_SCALAR_LOOP _Pragma("clang loop vectorize(disable) unroll(disable)")
#define TANDEM_SCALAR_FUNCTION __attribute__((noinline))
#else
#define TANDEM_SCALAR_LOOP
#define TANDEM_SCALAR_FUNCTION __attribute__((noinline, optimize("O2", "no-tree-vectorize")))
#endif
template <typename T>
TANDEM_SCALAR_FUNCTION void NaiveCausal(T* out, int64_t q_len, int64_t kv_len, T hidden,
                                        T visible) {
  for (int64_t i = 0; i < q_len; ++i) {
    TANDEM_SCALAR_LOOP
    for (int64_t j = 0; j < kv_len; ++j) {
      out[i * kv_len + j] = j <= kv_len - q_len + i ? visible : hidden;
    }
  }
}

double NaiveSeconds(const TensorView& out) {
  const int64_t q = out.dim(0), kv = out.dim(1);
  return MedianSeconds([&] {
    switch (BlockBytes(out.dtype)) {
      case 4:
        NaiveCausal<uint32_t>(out.As<uint32_t>(), q, kv, 0xFF800000u, 0);
        break;
      case 2:
        NaiveCausal<uint16_t>(out.As<uint16_t>(), q, kv, 0xFC00, 0);
        break;
      default:
        NaiveCausal<uint8_t>(out.As<uint8_t>(), q, kv, 0, 1);
    }
    benchmark::ClobberMemory();
  });
}

// Median seconds in which one thread fills that memory with a constant.
double FillSeconds(void* data, int64_t bytes) {
  const double plain = MedianSeconds([&] {
    std::memset(data, 0x5A, static_cast<size_t>(bytes));
    benchmark::ClobberMemory();
  });
  const double streaming = MedianSeconds([&] {
    const __m128i value = _mm_set1_epi8(0x5A);
    auto* p = static_cast<__m128i*>(data);
    for (int64_t i = 0; i + 4 <= bytes / 16; i += 4) {
      _mm_stream_si128(p + i, value);
      _mm_stream_si128(p + i + 1, value);
      _mm_stream_si128(p + i + 2, value);
      _mm_stream_si128(p + i + 3, value);
    }
    _mm_sfence();
    benchmark::ClobberMemory();
  });
  return std::min(plain, streaming);
}

void MaskOf(benchmark::State& state, int64_t length, DType dtype, int threads) {
  TensorArena arena;
  const MaskArgs args = {.rule = {.q_len = length, .kv_len = length},
                         .out = arena.Make(dtype, {length, MaskColumns(dtype, length)})};
  const int64_t bytes = ByteExtent(args.out);
  const double naive = dtype == DType::kU32 ? 0.0 : NaiveSeconds(args.out);
  const double fill = FillSeconds(args.out.data, bytes);
  OpRunner<MaskArgs> runner(threads, args);
  for (auto _ : state) {
    if (!runner.Run(args)) state.SkipWithError("run failed");
    benchmark::ClobberMemory();
  }
  const double median = MedianSeconds([&] {
    (void)runner.Run(args);
    benchmark::ClobberMemory();
  });
  state.SetLabel(runner.name());
  state.counters["GB_s"] = static_cast<double>(bytes) / median * 1e-9;
  state.counters["median_us"] = median * 1e6;
  state.counters["of_store"] = fill / median;
  if (naive > 0.0) state.counters["times_naive"] = naive / median;
}

void MaskCacheHit(benchmark::State& state) {
  ContextOptions options;
  options.threads = 1;
  const auto context = Context::Create(options).value();
  MaskCache cache;
  for (int64_t length = 1; length <= 50; ++length) {
    (void)cache.Get(*context, {.q_len = length, .kv_len = 2 * length}, DType::kF32);
  }
  int64_t length = 1;
  for (auto _ : state) {
    auto mask = cache.Get(*context, {.q_len = length, .kv_len = 2 * length}, DType::kF32);
    benchmark::DoNotOptimize(mask);
    length = length % 50 + 1;
  }
  state.counters["hit_rate"] = cache.stats().HitRate();
}

void Register() {
  const int cores = cpu::DescribeCpu().cores;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBool, DType::kU32}) {
    for (int64_t length : {64, 128, 256, 512, 1024, 2048, 4096, 8192}) {
      for (int threads : {1, cores}) {
        if (threads > 1 && length < 512) continue;
        const std::string name = "Mask/" + std::string(Name(dtype)) + "/" + std::to_string(length) +
                                 "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          MaskOf(state, length, dtype, threads);
        })->UseRealTime();
        if (cores == 1) break;
      }
    }
  }
  benchmark::RegisterBenchmark("MaskCache/hit", MaskCacheHit);
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::bench::Register();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
