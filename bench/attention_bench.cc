// Attention on the CPU against the machine's limits, measured in the same process just before.
//
//   Decode   one query per sequence. GB_s: unique K + V bytes per second. read_GB_s: read bandwidth
//            of a working set of that size. of_limit: the call's least possible time (the longer of
//            bytes / read bandwidth and FLOPs / FMA rate) over its actual time; FLOPs are
//            4 * Hq * keys * D, all done in f32.
//            hot: one cache, read again and again; cold: caches in rotation, together beyond the
//            last-level cache.
//   DecodeInt8  the same over an i8 cache, in turns with an f16 cache: of_f16 is the median of its
//            times over that of f16's, both by the clock.
//   Prefill  q_len = kv_len, causal, everything in one dtype. GFLOP_s counts the visible half.
//   of_fma: over the FMA rate.
//            of_sgemm: over oneDNN's f32 product of 512 x 2048 x 2048.
//   PrefillVariant  the same with one variant of the op each; GFLOP_s counts what the rule shows.
//
// One thread is timed by its processor time, so that a busy machine disturbs less; several threads
// by the clock.
//
//   attention_bench --benchmark_filter='Decode/.*/f16/.*threads:1$'
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "bench/median.h"
#include "core/buffer.h"
#include "core/ops/attention.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "oneapi/dnnl/dnnl.hpp"

// OpenMP's C interface: oneDNN's yardstick runs single-threaded on each thread of the pool.
extern "C" void omp_set_num_threads(int threads);

namespace tandem::cpu {
namespace {

struct HeadShape {
  const char* name;
  int64_t q_heads, kv_heads, head_dim;
};
constexpr HeadShape kHeadShapes[] = {{"32/8x128", 32, 8, 128}, {"32/4x64", 32, 4, 64}};

int AllThreads() { return DescribeCpu().cores; }

// Tensors of one call, K and V in `copies` independent caches.
class Problem {
 public:
  Problem(const HeadShape& shape, DType q_type, DType dtype, int64_t q_len, int64_t keys,
          int copies)
      : allocator_(MakeHostAllocator()) {
    TensorView q = Make(q_type, {1, shape.q_heads, q_len, shape.head_dim});
    TensorView out = Make(q_type, {1, shape.q_heads, q_len, shape.head_dim});
    for (int i = 0; i < copies; ++i) {
      AttentionArgs args;
      args.q = q;
      args.out = out;
      args.k = Make(dtype, {1, shape.kv_heads, keys, shape.head_dim});
      args.v = Make(dtype, {1, shape.kv_heads, keys, shape.head_dim});
      if (dtype == DType::kI8) {
        const auto scale = [](int64_t at) { return 0.01f + 0.0001f * static_cast<float>(at % 64); };
        args.k_scale = Fill<float>(DType::kF32, {1, shape.kv_heads, keys}, scale);
        args.v_scale = Fill<float>(DType::kF32, {1, shape.kv_heads, keys}, scale);
      }
      calls_.push_back(args);
    }
  }
  const std::vector<AttentionArgs>& calls() const { return calls_; }
  AttentionArgs& first_call() { return calls_[0]; }

  // Random numbers.
  TensorView Make(DType dtype, const Shape& shape) {
    if (dtype == DType::kI8) {
      return Fill<int8_t>(dtype, shape, [](int64_t i) { return i * 37 % 251 - 125; });
    }
    const int64_t count = NumElements(shape).value();
    buffers_.push_back(allocator_->Allocate(ByteOffset(dtype, count)).value());
    std::mt19937 random(static_cast<uint32_t>(buffers_.size()));
    std::vector<float> values(8191);  // a prime length, repeated
    for (float& x : values) x = std::uniform_real_distribution<float>(-1.0f, 1.0f)(random);
    DispatchFloat(dtype, [&]<typename T>() {
      T* data = static_cast<T*>(buffers_.back()->data());
      for (int64_t i = 0; i < count; ++i)
        data[i] = FromFloat<T>(values[static_cast<size_t>(i % 8191)]);
    });
    return MakeView(buffers_.back()->data(), dtype, shape);
  }
  // value(i) for every element.
  template <typename T, typename Value>
  TensorView Fill(DType dtype, const Shape& shape, Value value) {
    const int64_t count = NumElements(shape).value();
    buffers_.push_back(allocator_->Allocate(ByteOffset(dtype, count)).value());
    T* data = static_cast<T*>(buffers_.back()->data());
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>(value(i));
    return MakeView(buffers_.back()->data(), dtype, shape);
  }

 private:
  std::unique_ptr<Allocator> allocator_;
  std::vector<std::shared_ptr<Buffer>> buffers_;
  std::vector<AttentionArgs> calls_;
};

// Google Benchmark enters a benchmark several times to find its iteration count: the data and the
// yardstick are made once.
struct Cached {
  std::string key;
  std::unique_ptr<Problem> problem;
  double bandwidth = 0.0;
};
Cached& CacheFor(const std::string& key) {
  static Cached cached;
  if (cached.key != key) cached = {key, nullptr, 0.0};
  return cached;
}

// The first kernel of the list that can do the call, with its workspace.
class Runner {
 public:
  Runner(int threads, const AttentionArgs& args)
      : stream_(std::make_shared<ThreadPool>(threads), DetectCpu()), context_{&stream_, nullptr} {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      kernel_ = &kernel;
      if (kernel.supports(context_, args).ok()) break;
    }
    bytes_ = kernel_->workspace_bytes(context_, args);
    memory_ = allocator_->Allocate(bytes_).value();
  }
  bool Run(const AttentionArgs& args) {
    Workspace workspace(memory_->data(), bytes_);
    context_.workspace = &workspace;
    return kernel_->run(context_, args).ok();
  }
  std::string name() const { return std::string(kernel_->name); }

 private:
  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  CpuStream stream_;
  KernelContext context_;
  const Kernel<AttentionArgs>* kernel_ = nullptr;
  int64_t bytes_ = 0;
  std::shared_ptr<Buffer> memory_;
};

double FmaRate(int threads) {
  static std::map<int, double> rates;
  auto [it, fresh] = rates.try_emplace(threads, 0.0);
  if (fresh) it->second = MeasureFmaRate(threads, DetectCpu().isa);
  return it->second;
}

void Decode(benchmark::State& state, const HeadShape& shape, DType dtype, int64_t keys, bool cold,
            int threads) {
  const int64_t bytes = 2 * shape.kv_heads * keys * shape.head_dim * BlockBytes(dtype);
  constexpr int64_t kColdBytes = int64_t{384} << 20;
  const int copies = cold ? static_cast<int>(std::max<int64_t>(1, kColdBytes / bytes)) : 1;
  Cached& cached =
      CacheFor("decode " + std::string(shape.name) + std::string(Name(dtype)) +
               std::to_string(keys) + (cold ? "cold" : "hot") + std::to_string(threads));
  if (cached.problem == nullptr) {
    cached.bandwidth = MeasureReadBandwidth(threads, bytes * copies);
    cached.problem = std::make_unique<Problem>(shape, DType::kF32, dtype, 1, keys, copies);
  }
  const double bandwidth = cached.bandwidth;
  const Problem& problem = *cached.problem;
  Runner runner(threads, problem.calls()[0]);
  size_t next = 0;
  for (auto _ : state) {
    if (!runner.Run(problem.calls()[next])) state.SkipWithError("run failed");
    next = (next + 1) % problem.calls().size();
  }
  const double flops = 4.0 * static_cast<double>(shape.q_heads * keys * shape.head_dim);
  const double least =
      std::max(static_cast<double>(bytes) / bandwidth, flops / FmaRate(threads)) * 1e-9;
  using benchmark::Counter;
  state.SetLabel(runner.name());
  state.counters["GB_s"] =
      Counter(static_cast<double>(bytes) * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["read_GB_s"] = bandwidth;
  state.counters["of_read"] =
      Counter(static_cast<double>(bytes) * 1e-9 / bandwidth, Counter::kIsIterationInvariantRate);
  state.counters["of_limit"] = Counter(least, Counter::kIsIterationInvariantRate);
}

void DecodeInt8(benchmark::State& state, const HeadShape& shape, int64_t keys, bool cold,
                int threads) {
  const int64_t f16_bytes = 4 * shape.kv_heads * keys * shape.head_dim;
  constexpr int64_t kColdBytes = int64_t{384} << 20;
  const int copies = cold ? static_cast<int>(std::max<int64_t>(1, kColdBytes / f16_bytes)) : 1;
  const Problem f16(shape, DType::kF32, DType::kF16, 1, keys, copies);
  const Problem i8(shape, DType::kF32, DType::kI8, 1, keys, 2 * copies);
  Runner run_f16(threads, f16.calls()[0]), run_i8(threads, i8.calls()[0]);
  const auto seconds = [&](Runner& runner, const Problem& problem, size_t first, size_t calls) {
    const auto start = std::chrono::steady_clock::now();
    for (size_t i = 0; i < calls; ++i) {
      if (!runner.Run(problem.calls()[(first + i) % problem.calls().size()])) {
        state.SkipWithError("run failed");
      }
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    return taken.count() / static_cast<double>(calls);
  };
  // Turns long enough that the caches forget the other's data.
  const size_t calls = static_cast<size_t>(std::max<int64_t>(1, (int64_t{64} << 20) / f16_bytes));
  std::vector<double> f16_times, i8_times;
  size_t next = 0;
  for (auto _ : state) {
    f16_times.push_back(seconds(run_f16, f16, next, calls));
    i8_times.push_back(seconds(run_i8, i8, next, calls));
    next += calls;
    state.SetIterationTime(i8_times.back());
  }
  state.SetLabel(run_i8.name());
  const double i8_time = Median(i8_times), f16_time = Median(f16_times);
  state.counters["GB_s"] = 0.5e-9 * static_cast<double>(f16_bytes) / i8_time;
  state.counters["f16_GB_s"] = 1e-9 * static_cast<double>(f16_bytes) / f16_time;
  state.counters["of_f16"] = i8_time / f16_time;
}

// oneDNN's f32 matrix product at the given thread count: each thread multiplies its own.
double SgemmRate(int threads) {
  static std::map<int, double> rates;
  auto [it, fresh] = rates.try_emplace(threads, 0.0);
  if (!fresh) return it->second;
  constexpr int64_t kM = 512, kN = 2048, kK = 2048;
  const std::vector<float> a(static_cast<size_t>(kM * kK), 0.5f),
      b(static_cast<size_t>(kK * kN), 0.5f);
  ThreadPool pool(threads);
  std::vector<std::vector<float>> c(static_cast<size_t>(threads));
  for (auto& x : c) x.resize(static_cast<size_t>(kM * kN));
  const auto seconds = [threads] {  // as MeasureFmaRate: processor time when alone
    timespec now = {};
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  };
  for (int pass = 0; pass < 5; ++pass) {
    const double start = seconds();
    pool.ParallelFor(threads, [&](int64_t i, int) {
      omp_set_num_threads(1);
      dnnl::sgemm('N', 'N', kM, kN, kK, 1.0f, a.data(), kK, b.data(), kN, 0.0f,
                  c[static_cast<size_t>(i)].data(), kN);
    });
    it->second = std::max(it->second, 2e-9 * kM * kN * kK * threads / (seconds() - start));
  }
  return it->second;
}

void Prefill(benchmark::State& state, const HeadShape& shape, DType dtype, int64_t length,
             int threads) {
  Problem problem(shape, dtype, dtype, length, length, 1);
  Runner runner(threads, problem.calls()[0]);
  for (auto _ : state) {
    if (!runner.Run(problem.calls()[0])) state.SkipWithError("run failed");
  }
  const double pairs = 0.5 * static_cast<double>(length) * static_cast<double>(length + 1);
  const double flops = 4.0 * static_cast<double>(shape.q_heads * shape.head_dim) * pairs;
  using benchmark::Counter;
  state.SetLabel(runner.name());
  state.counters["GFLOP_s"] = Counter(flops * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_fma"] =
      Counter(flops * 1e-9 / FmaRate(threads), Counter::kIsIterationInvariantRate);
  state.counters["of_sgemm"] =
      Counter(flops * 1e-9 / SgemmRate(threads), Counter::kIsIterationInvariantRate);
}

// What each variant adds to causal attention over 1024 tokens.
struct Variant {
  const char* name;
  void (*apply)(Problem& problem, AttentionArgs& args);
};
constexpr int64_t kVariantLength = 1024;
constexpr Variant kVariants[] = {
    {"plain", [](Problem&, AttentionArgs&) {}},
    {"softcap", [](Problem&, AttentionArgs& args) { args.softcap = 30.0f; }},
    {"alibi",
     [](Problem& problem, AttentionArgs& args) {
       args.alibi_slopes = problem.Make(DType::kF32, {args.q_heads()});
     }},
    {"bias_f32",
     [](Problem& problem, AttentionArgs& args) {
       args.bias = problem.Make(DType::kF32, {1, 1, args.q_len(), args.kv_len()});
     }},
    {"bias_f16_per_head",
     [](Problem& problem, AttentionArgs& args) {
       args.bias = problem.Make(DType::kF16, {1, args.q_heads(), args.q_len(), args.kv_len()});
     }},
    {"mask_bool",
     [](Problem& problem, AttentionArgs& args) {
       args.mask = problem.Fill<uint8_t>(DType::kBool, {1, 1, args.q_len(), args.kv_len()},
                                         [](int64_t i) { return i % 5 != 0; });
     }},
    {"mask_packed",
     [](Problem& problem, AttentionArgs& args) {
       args.mask = problem.Fill<uint32_t>(DType::kU32, {1, 1, args.q_len(), args.kv_len() / 32},
                                          [](int64_t i) { return 0x9E3779B9u * (i + 1); });
     }},
    {"sinks",
     [](Problem& problem, AttentionArgs& args) {
       args.sinks = problem.Make(DType::kF32, {args.q_heads()});
     }},
    {"window_256", [](Problem&, AttentionArgs& args) { args.window_left = 255; }},
    {"int8_cache",
     [](Problem& problem, AttentionArgs& args) {
       const Shape rows = {1, args.kv_heads(), args.kv_len()};
       const Shape all = {1, args.kv_heads(), args.kv_len(), args.head_dim()};
       const auto value = [](int64_t i) { return i * 37 % 251 - 125; };
       args.k = problem.Fill<int8_t>(DType::kI8, all, value);
       args.v = problem.Fill<int8_t>(DType::kI8, all, value);
       args.k_scale = problem.Fill<float>(DType::kF32, rows, [](int64_t) { return 0.01f; });
       args.v_scale = args.k_scale;
     }},
    {"pages_of_16",
     [](Problem& problem, AttentionArgs& args) {
       constexpr int64_t kPage = 16;
       const int64_t pages = args.kv_len() / kPage, keys = args.kv_len();
       const Shape pool = {pages, args.kv_heads(), kPage, args.head_dim()};
       args.page_table = problem.Fill<int32_t>(DType::kI32, {1, pages},
                                               [=](int64_t i) { return (i * 27 + 5) % pages; });
       args.kv_lens = problem.Fill<int32_t>(DType::kI32, {1}, [=](int64_t) { return keys; });
       args.k = problem.Make(args.k.dtype, pool);
       args.v = problem.Make(args.v.dtype, pool);
     }},
};

void PrefillVariant(benchmark::State& state, const Variant& variant, int threads) {
  Problem problem(kHeadShapes[0], DType::kF16, DType::kF16, kVariantLength, kVariantLength, 1);
  AttentionArgs& args = problem.first_call();
  variant.apply(problem, args);
  Runner runner(threads, args);
  for (auto _ : state) {
    if (!runner.Run(args)) state.SkipWithError("run failed");
  }
  int64_t pairs = 0;  // that the rule lets see each other
  const MaskRule rule = args.Sequence(0).rule;
  for (int64_t i = 0; i < args.q_len(); ++i) pairs += rule.Range(i).end - rule.Range(i).begin;
  const double flops = 4.0 * static_cast<double>(args.q_heads() * args.head_dim() * pairs);
  using benchmark::Counter;
  state.SetLabel(runner.name());
  state.counters["GFLOP_s"] = Counter(flops * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["of_fma"] =
      Counter(flops * 1e-9 / FmaRate(threads), Counter::kIsIterationInvariantRate);
  state.counters["of_sgemm"] =
      Counter(flops * 1e-9 / SgemmRate(threads), Counter::kIsIterationInvariantRate);
}

template <typename Fn>
void Register(const std::string& name, int threads, Fn fn) {
  auto* registered =
      benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(), fn);
  if (threads > 1) registered->UseRealTime();
}

void RegisterAll() {
  std::vector<int> thread_counts = {1};
  if (AllThreads() > 1) thread_counts.push_back(AllThreads());
  for (int threads : thread_counts) {
    for (const Variant& variant : kVariants) {
      Register("PrefillVariant/32/8x128/f16/length:" + std::to_string(kVariantLength) + "/" +
                   variant.name,
               threads,
               [=, &variant](benchmark::State& s) { PrefillVariant(s, variant, threads); });
    }
    for (const HeadShape& shape : kHeadShapes) {
      for (bool cold : {false, true}) {
        for (int64_t keys : {64, 1024, 16384, 65536}) {
          benchmark::RegisterBenchmark(
              ("DecodeInt8/" + std::string(shape.name) + (cold ? "/cold" : "/hot") +
               "/keys:" + std::to_string(keys) + "/threads:" + std::to_string(threads))
                  .c_str(),
              [=, &shape](benchmark::State& s) { DecodeInt8(s, shape, keys, cold, threads); })
              ->UseManualTime();
        }
      }
      for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        const std::string suffix = "/" + std::string(shape.name) + "/" + std::string(Name(dtype));
        for (bool cold : {false, true}) {
          for (int64_t keys : {64, 128, 256, 512, 1024, 4096, 16384, 65536}) {
            Register(
                "Decode" + suffix + (cold ? "/cold" : "/hot") + "/keys:" + std::to_string(keys),
                threads,
                [=, &shape](benchmark::State& s) { Decode(s, shape, dtype, keys, cold, threads); });
          }
        }
        for (int64_t length : {128, 512, 1024, 2048, 4096}) {
          Register("Prefill" + suffix + "/length:" + std::to_string(length), threads,
                   [=, &shape](benchmark::State& s) { Prefill(s, shape, dtype, length, threads); });
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu

int main(int argc, char** argv) {
  tandem::cpu::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
