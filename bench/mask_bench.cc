// Mask creation against what the machine can store, and against the loop that it replaces, all
// measured in the same process just before. One thread unless the name says otherwise.
//
//   Mask         the output is reused and stays in the caches if it fits, as in a decoder.
//                GB_s: bytes of the mask per second. of_store: over the fastest of a plain fill
//                with the widest vectors, memset, and a non-temporal fill of as many bytes.
//                times_naive: over a scalar nested loop that asks "j <= past + i" per element.
//   MaskCold     outputs rotate through 192 MiB: none is in a cache. of_stream: over a non-temporal
//                fill of the same buffers; of_store: over the fastest fill.
//   MaskFresh    memory that was never touched: Mask() allocates it (huge pages) and fills it.
//                times_naive: the scalar loop into memory fresh from malloc; times_naive_huge: into
//                the allocator's.
//   MaskPattern  f32, 1024 x 1024, by pattern.
//   MaskBatch    8 sequences of different lengths in one call, f32 and packed.
//   MaskExtend   one step of decoding: a row and a column more, in place, next to a fresh build.
//   MaskCache    ns of one hit.
#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <cstring>
#include <limits>
#include <string>

#include "bench/op_runner.h"
#include "core/ops/mask.h"
#include "core/ops/mask_patterns.h"
#include "cpu/backend.h"
#include "dispatch/context.h"
#include "dispatch/mask_cache.h"
#include "dispatch/ops.h"

namespace tandem::bench {
namespace {

constexpr double kBudget = 0.05;  // seconds per figure

// Median seconds of one call; short ones are timed many at a time, since the clock itself takes
// tens of nanoseconds.
template <typename Fn>
double SecondsPerCall(int64_t bytes, Fn fn) {
  const int64_t calls = std::max<int64_t>(1, (int64_t{256} << 10) / std::max<int64_t>(bytes, 1024));
  return MedianSeconds(
             [&] {
               for (int64_t i = 0; i < calls; ++i) fn();
             },
             kBudget) /
         static_cast<double>(calls);
}

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

// The packed form, bit by bit.
TANDEM_SCALAR_FUNCTION void NaivePackedCausal(uint32_t* out, int64_t q_len, int64_t kv_len) {
  const int64_t words = MaskColumns(DType::kU32, kv_len);
  for (int64_t i = 0; i < q_len; ++i) {
    for (int64_t word = 0; word < words; ++word) {
      uint32_t bits = 0;
      TANDEM_SCALAR_LOOP
      for (int64_t bit = 0; bit < 32; ++bit) {
        const int64_t j = word * 32 + bit;
        bits |= uint32_t{j < kv_len && j <= kv_len - q_len + i} << bit;
      }
      out[i * words + word] = bits;
    }
  }
}

void Naive(void* out, DType dtype, int64_t length) {
  if (dtype == DType::kU32) {
    NaivePackedCausal(static_cast<uint32_t*>(out), length, length);
  } else if (BlockBytes(dtype) == 4) {
    NaiveCausal<uint32_t>(static_cast<uint32_t*>(out), length, length, 0xFF800000u, 0);
  } else if (BlockBytes(dtype) == 2) {
    NaiveCausal<uint16_t>(static_cast<uint16_t*>(out), length, length, 0xFC00, 0);
  } else {
    NaiveCausal<uint8_t>(static_cast<uint8_t*>(out), length, length, 0, 1);
  }
  benchmark::ClobberMemory();
}

// Fills of memory that begins at a cache line: whole lines, then bytes.
#define TANDEM_AVX512 __attribute__((target("avx512f"), noinline))
TANDEM_AVX512 void FillPlain512(char* data, int64_t bytes) {
  const __m512i value = _mm512_set1_epi8(0x5A);
  int64_t i = 0;
  for (; i + 256 <= bytes; i += 256) {
    for (int64_t j = 0; j < 256; j += 64) _mm512_store_si512(data + i + j, value);
  }
  for (; i + 64 <= bytes; i += 64) _mm512_store_si512(data + i, value);
  std::memset(data + i, 0x5A, static_cast<size_t>(bytes - i));
}
TANDEM_AVX512 void FillStream512(char* data, int64_t bytes) {
  const __m512i value = _mm512_set1_epi8(0x5A);
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(data + i), value);
  }
  _mm_sfence();
  std::memset(data + i, 0x5A, static_cast<size_t>(bytes - i));
}
void FillStream128(char* data, int64_t bytes) {
  const __m128i value = _mm_set1_epi8(0x5A);
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(data + i), value);
  }
  _mm_sfence();
  std::memset(data + i, 0x5A, static_cast<size_t>(bytes - i));
}
void FillMemset(char* data, int64_t bytes) { std::memset(data, 0x5A, static_cast<size_t>(bytes)); }

// `buffers` pieces of one allocation, used in turn.
class Ring {
 public:
  Ring(int64_t bytes, int64_t buffers)
      : step_((bytes + 63) / 64 * 64),
        buffers_(buffers),
        memory_(allocator_->Allocate(step_ * buffers).value()) {
    std::memset(memory_->data(), 1, static_cast<size_t>(step_ * buffers));
  }
  char* Next() {
    at_ = at_ + 1 == buffers_ ? 0 : at_ + 1;
    return static_cast<char*>(memory_->data()) + at_ * step_;
  }

 private:
  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  int64_t step_, buffers_, at_ = 0;
  std::shared_ptr<Buffer> memory_;
};

struct StoreSeconds {
  double fastest;
  double streaming;
};
StoreSeconds MeasureStores(Ring& ring, int64_t bytes) {
  const auto seconds = [&](void (*fill)(char*, int64_t)) {
    return SecondsPerCall(bytes, [&] {
      fill(ring.Next(), bytes);
      benchmark::ClobberMemory();
    });
  };
  const bool wide = __builtin_cpu_supports("avx512f");
  const double streaming = seconds(wide ? FillStream512 : FillStream128);
  double fastest = std::min(streaming, seconds(FillMemset));
  if (wide) fastest = std::min(fastest, seconds(FillPlain512));
  return {fastest, streaming};
}

MaskArgs Square(DType dtype, int64_t length) {
  return {
      .rule = CausalMask(length, length),
      .out = MakeView(static_cast<void*>(nullptr), dtype, {length, MaskColumns(dtype, length)})};
}

void MaskOf(benchmark::State& state, int64_t length, DType dtype, int threads, int64_t buffers) {
  MaskArgs args = Square(dtype, length);
  const int64_t bytes = ByteExtent(args.out);
  Ring ring(bytes, buffers);
  const double naive = SecondsPerCall(bytes, [&] { Naive(ring.Next(), dtype, length); });
  const StoreSeconds store = MeasureStores(ring, bytes);
  args.out.data = ring.Next();
  OpRunner<MaskArgs> runner(threads, args);
  const auto run = [&] {
    args.out.data = ring.Next();
    const bool ok = runner.Run(args);
    benchmark::ClobberMemory();
    return ok;
  };
  for (auto _ : state) {
    if (!run()) state.SkipWithError("run failed");
  }
  const double median = SecondsPerCall(ByteExtent(args.out), run);
  state.SetLabel(runner.name());
  state.counters["GB_s"] = static_cast<double>(bytes) / median * 1e-9;
  state.counters["median_us"] = median * 1e6;
  state.counters["of_store"] = store.fastest / median;
  state.counters["of_stream"] = store.streaming / median;
  state.counters["times_naive"] = naive / median;
}

void MaskFresh(benchmark::State& state, int64_t length, DType dtype) {
  ContextOptions options;
  options.threads = 1;
  const auto context = Context::Create(options).value();
  const int64_t bytes = length * MaskColumns(dtype, length) * BlockBytes(dtype);
  for (auto _ : state) benchmark::DoNotOptimize(Mask(*context, CausalMask(length, length), dtype));
  // Freed after the clock: handing memory back is not part of making a mask.
  absl::StatusOr<Tensor> mask;
  std::shared_ptr<Buffer> buffer;
  std::unique_ptr<char[]> plain;
  const auto median = [](auto release, auto make) {
    std::vector<double> times;
    for (int i = 0; i < 7; ++i) {
      release();
      const auto begin = std::chrono::steady_clock::now();
      make();
      times.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return Median(times);
  };
  const double ours = median([&] { mask = Tensor(); },
                             [&] { mask = Mask(*context, CausalMask(length, length), dtype); });
  mask = Tensor();
  const double huge = median([&] { buffer.reset(); },
                             [&] {
                               buffer = context->host_allocator().Allocate(bytes).value();
                               Naive(buffer->data(), dtype, length);
                             });
  buffer.reset();
  const double naive = median([&] { plain.reset(); },
                              [&] {
                                plain.reset(new char[static_cast<size_t>(bytes)]);
                                Naive(plain.get(), dtype, length);
                              });
  state.counters["GB_s"] = static_cast<double>(bytes) / ours * 1e-9;
  state.counters["median_us"] = ours * 1e6;
  state.counters["times_naive"] = naive / ours;
  state.counters["times_naive_huge"] = huge / ours;
}

// One call, hot.
void MaskCall(benchmark::State& state, const MaskArgs& args) {
  OpRunner<MaskArgs> runner(1, args);
  const auto run = [&] {
    const bool ok = runner.Run(args);
    benchmark::ClobberMemory();
    return ok;
  };
  for (auto _ : state) {
    if (!run()) state.SkipWithError("run failed");
  }
  const double median = SecondsPerCall(ByteExtent(args.out), run);
  state.counters["GB_s"] = static_cast<double>(ByteExtent(args.out)) / median * 1e-9;
  state.counters["median_us"] = median * 1e6;
}

void MaskPattern(benchmark::State& state, const MaskRule& rule) {
  TensorArena arena;
  MaskCall(state, {.rule = rule, .out = arena.Make(DType::kF32, {rule.q_len, rule.kv_len})});
}

void MaskBatch(benchmark::State& state, DType dtype) {
  constexpr int64_t kBatch = 8, kRows = 64, kKeys = 1024;
  TensorArena arena;
  MaskArgs args = {.rule = CausalMask(kRows, kKeys),
                   .out = arena.Make(dtype, {kBatch, 1, kRows, MaskColumns(dtype, kKeys)}),
                   .q_lens = arena.Make(DType::kI32, {kBatch}),
                   .kv_lens = arena.Make(DType::kI32, {kBatch}),
                   .kv_starts = arena.Make(DType::kI32, {kBatch})};
  for (int32_t b = 0; b < kBatch; ++b) {
    args.q_lens.As<int32_t>()[b] = 64 - 5 * b;
    args.kv_lens.As<int32_t>()[b] = 1024 - 111 * b;
    args.kv_starts.As<int32_t>()[b] = 3 * b;
  }
  MaskCall(state, args);
}

// From length x length to one more of both, then back: what one step writes, on average.
void MaskExtend(benchmark::State& state, int64_t length, DType dtype) {
  TensorArena arena;
  const int64_t stride = MaskColumns(dtype, length + 64);
  const TensorView buffer = arena.Make(dtype, {length + 1, stride});
  const auto args = [&](int64_t now, int64_t before) {
    MaskArgs result = {.rule = CausalMask(now, now)};
    result.out = Slice(Slice(buffer, 0, 0, now), 1, 0, MaskColumns(dtype, now));
    if (before > 0) result.previous = CausalMask(before, before);
    return result;
  };
  OpRunner<MaskArgs> runner(1, args(length, 0));
  const MaskArgs build = args(length + 1, 0), grow = args(length + 1, length);
  (void)runner.Run(args(length, 0));
  for (auto _ : state) {
    if (!runner.Run(grow)) state.SkipWithError("run failed");
    benchmark::ClobberMemory();
  }
  const double step = SecondsPerCall(length * 16, [&] { (void)runner.Run(grow); });
  const double fresh = SecondsPerCall(ByteExtent(build.out), [&] { (void)runner.Run(build); });
  state.counters["median_us"] = step * 1e6;
  state.counters["times_rebuild"] = fresh / step;
}

void MaskCacheHit(benchmark::State& state) {
  ContextOptions options;
  options.threads = 1;
  const auto context = Context::Create(options).value();
  MaskCache cache;
  for (int64_t length = 1; length <= 50; ++length) {
    (void)cache.Get(*context, CausalMask(length, 2 * length), DType::kF32);
  }
  int64_t length = 1;
  for (auto _ : state) {
    auto mask = cache.Get(*context, CausalMask(length, 2 * length), DType::kF32);
    benchmark::DoNotOptimize(mask);
    length = length % 50 + 1;
  }
  state.counters["hit_rate"] = cache.stats().HitRate();
}

template <typename Fn>
void Add(const std::string& name, Fn fn) {
  benchmark::RegisterBenchmark(name.c_str(), fn)->UseRealTime()->MinTime(kBudget);
}

void Register() {
  const int cores = cpu::DescribeCpu().cores;
  constexpr int64_t kColdBytes = int64_t{192} << 20;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBool, DType::kU32}) {
    for (int64_t length : {64, 128, 256, 512, 1024, 2048, 4096, 8192}) {
      const std::string what = std::string(Name(dtype)) + "/" + std::to_string(length);
      for (int threads : {1, cores}) {
        if (threads > 1 && length < 512) continue;
        Add("Mask/" + what + "/threads:" + std::to_string(threads),
            [=](benchmark::State& state) { MaskOf(state, length, dtype, threads, 1); });
        if (cores == 1) break;
      }
      const int64_t bytes = ByteExtent(Square(dtype, length).out);
      Add("MaskCold/" + what, [=](benchmark::State& state) {
        MaskOf(state, length, dtype, 1, std::max<int64_t>(1, kColdBytes / bytes));
      });
      if (length >= 512) {
        Add("MaskFresh/" + what, [=](benchmark::State& state) { MaskFresh(state, length, dtype); });
      }
    }
  }
  for (const auto& [name, rule] :
       {std::pair("full", FullMask(1024, 1024)), std::pair("causal", CausalMask(1024, 1024)),
        std::pair("sliding_window", SlidingWindowMask(1024, 1024, 256)),
        std::pair("local", LocalMask(1024, 1024, 20, 20)),
        std::pair("chunked", ChunkedMask(1024, 1024, 128)),
        std::pair("prefix_lm", PrefixLmMask(1024, 1024, 200)),
        std::pair("left_padded", LeftPaddedMask(1024, 1024, 100))}) {
    Add(std::string("MaskPattern/") + name,
        [rule = rule](benchmark::State& state) { MaskPattern(state, rule); });
  }
  for (DType dtype : {DType::kF32, DType::kU32}) {
    const std::string name(Name(dtype));
    Add("MaskBatch/" + name, [=](benchmark::State& state) { MaskBatch(state, dtype); });
    for (int64_t length : {128, 1024, 4096}) {
      Add("MaskExtend/" + name + "/" + std::to_string(length),
          [=](benchmark::State& state) { MaskExtend(state, length, dtype); });
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
