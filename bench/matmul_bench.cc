// Matrix products on the CPU against two yardsticks measured in the same process, in turns with the
// thing itself.
//
//   Gemm   M = 16 .. 512 over a decoder layer's weights, from DRAM (matrices in rotation, together
//          beyond the last cache). GFLOP_s; of_onednn: over raw oneDNN's rate at its best: f32,
//          weights in its own packed format (made beforehand), one call for the whole product, its
//          own OpenMP threads. of_onednn_bf16 (weights of fewer bits than f32, on processors with
//          bf16 products): the same, both operands in bf16. of_fma: over the measured FMA rate.
//          Activations are f32; those of .._by_bf16 are bf16.
//   Gemv   M = 1 .. 8. GB_s over the bytes of the weights, which come from DRAM; of_read: over the
//          measured read bandwidth.
// .._packed: weights packed beforehand (PackWeights).
//
// One thread is timed by its processor time, so that a busy machine disturbs less; several threads
// by the clock. Rates are of the median iteration, ours and the yardstick's alike.
//
// The kernel timed is the first that accepts; --kernel=NAME forces one.
//
//   matmul_bench --benchmark_filter='Gemm/f16/.*threads:1/'
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "bench/median.h"
#include "core/buffer.h"
#include "core/ops/matmul.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "oneapi/dnnl/dnnl.hpp"

// OpenMP's C interface: oneDNN's thread count.
extern "C" void omp_set_num_threads(int);

namespace tandem::cpu {
namespace {

constexpr int64_t kColdBytes = int64_t{96} << 20;  // beyond the last-level cache of most machines

int AllThreads() { return DescribeCpu().cores; }

double Seconds(int threads) {
  if (threads > 1) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct WeightShape {
  int64_t n, k;
};
constexpr WeightShape kShapes[] = {{2048, 2048}, {5632, 2048}, {2048, 5632}, {4096, 4096}};

// Activations, and enough copies of a weight matrix to come from DRAM every time.
class Problem {
 public:
  Problem(DType dtype, int64_t m, WeightShape shape, DType a_dtype = DType::kF32)
      : m_(m), shape_(shape), allocator_(MakeHostAllocator()) {
    const int64_t bytes = ByteOffset(dtype, shape.n * shape.k);
    for (int64_t i = 0; i < kColdBytes / bytes + 1; ++i) {
      weights_.push_back(allocator_->Allocate(bytes).value());
      Fill(dtype, shape.n * shape.k, weights_.back()->data());
      MatMulArgs args;
      args.b = MakeView(weights_.back()->data(), dtype, {shape.n, shape.k});
      calls_.push_back(args);
    }
    a_ = allocator_->Allocate(ByteOffset(a_dtype, m * shape.k)).value();
    out_ = allocator_->Allocate(m * shape.n * 4).value();
    Fill(a_dtype, m * shape.k, a_->data());
    for (MatMulArgs& args : calls_) {
      args.a = MakeView(a_->data(), a_dtype, {m, shape.k});
      args.out = MakeView(out_->data(), DType::kF32, {m, shape.n});
    }
  }

  std::vector<MatMulArgs>& calls() { return calls_; }
  // One after the other.
  const MatMulArgs& NextCall() { return calls_[next_++ % calls_.size()]; }
  int64_t weight_bytes() const { return weights_.front()->bytes(); }
  double flops() const { return 2.0 * m_ * shape_.n * shape_.k; }

 private:
  static void Fill(DType dtype, int64_t count, void* data) {
    std::mt19937 random(1);
    std::vector<float> values(8191);  // a prime length, repeated
    for (float& x : values) x = std::uniform_real_distribution<float>(-1.0f, 1.0f)(random);
    if (IsBlockQuantized(dtype)) {
      auto* bytes = static_cast<uint8_t*>(data);
      const int64_t block = BlockBytes(dtype);
      for (int64_t b = 0; b < count / BlockLength(dtype); ++b) {
        const F16 scale = ToF16(values[static_cast<size_t>(b % 8191)] / 64);
        std::copy_n(reinterpret_cast<const uint8_t*>(&scale), 2, bytes + b * block);
        for (int64_t i = 2; i < block; ++i) {
          bytes[b * block + i] = static_cast<uint8_t>((b * 31 + i * 7) & 255);
        }
      }
      return;
    }
    DispatchFloat(dtype, [&]<typename T>() {
      for (int64_t i = 0; i < count; ++i) {
        static_cast<T*>(data)[i] = FromFloat<T>(values[static_cast<size_t>(i % 8191)]);
      }
    });
  }

  int64_t m_;
  WeightShape shape_;
  std::unique_ptr<Allocator> allocator_;
  std::vector<std::shared_ptr<Buffer>> weights_;
  std::shared_ptr<Buffer> a_, out_;
  std::vector<MatMulArgs> calls_;
  size_t next_ = 0;
};

// oneDNN called directly, as a careful user would: one primitive of f32 or bf16 operands, weights
// packed beforehand.
class RawOneDnn {
 public:
  using Type = dnnl::memory::data_type;

  RawOneDnn(int64_t m, WeightShape shape, Type type, int threads) : threads_(threads) {
    omp_set_num_threads(threads);
    using dnnl::memory;
    const memory::desc a({m, shape.k}, type, memory::format_tag::ab);
    const memory::desc b({shape.k, shape.n}, type, memory::format_tag::any);
    const memory::desc c({m, shape.n}, memory::data_type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc desc(engine_, a, b, c);
    product_ = dnnl::matmul(desc);
    const auto filled = [&](const memory::desc& d) {
      memory result(d, engine_);
      std::fill_n(static_cast<uint16_t*>(result.get_data_handle()), d.get_size() / 2,
                  uint16_t{0x3F00});  // 0.5, as f32 and as bf16
      return result;
    };
    const auto bytes = static_cast<int64_t>(desc.weights_desc().get_size());
    for (int64_t i = 0; i < kColdBytes / bytes + 1; ++i) {
      arguments_.push_back({{DNNL_ARG_SRC, filled(a)},
                            {DNNL_ARG_WEIGHTS, filled(desc.weights_desc())},
                            {DNNL_ARG_DST, filled(c)}});
    }
  }
  double Time() {
    omp_set_num_threads(threads_);
    const double begin = Seconds(threads_);
    product_.execute(stream_, arguments_[next_++ % arguments_.size()]);
    stream_.wait();
    return Seconds(threads_) - begin;
  }

 private:
  int threads_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul product_;
  std::vector<std::unordered_map<int, dnnl::memory>> arguments_;
  size_t next_ = 0;
};

// Runs the first kernel that accepts, or the forced one.
class Runner {
 public:
  Runner(int threads, std::string_view forced)
      : threads_(threads),
        forced_(forced),
        stream_(std::make_shared<ThreadPool>(threads), DetectCpu()) {}

  const Kernel<MatMulArgs>* Choose(const MatMulArgs& args) {
    for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
      if (!forced_.empty() && kernel.name != forced_) continue;
      if (!kernel.supports({&stream_, nullptr}, args).ok()) continue;
      const int64_t bytes = kernel.workspace_bytes({&stream_, nullptr}, args);
      scratch_ = allocator_->Allocate(bytes).value();
      return &kernel;
    }
    return nullptr;
  }
  double Time(const Kernel<MatMulArgs>& kernel, const MatMulArgs& args) {
    const double begin = Seconds(threads_);
    Workspace workspace(scratch_->data(), scratch_->bytes());
    const absl::Status status = kernel.run({&stream_, &workspace}, args);
    const double seconds = Seconds(threads_) - begin;
    return status.ok() ? seconds : 1e30;
  }

 private:
  int threads_;
  std::string_view forced_;
  CpuStream stream_;
  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  std::shared_ptr<Buffer> scratch_;
};

// Two libraries with threads of their own take turns. After a call OpenMP's threads spin for up to
// 15 ms, on cores that the other library's threads need: with two threads on two cores that took a
// fifth to a half of Tandem's rate. So whoever is next waits until they sleep, and its first call,
// which wakes its own threads, does not count.
class Turns {
 public:
  explicit Turns(int threads) : threads_(threads) {}

  template <typename TimeCall>
  double Time(const TimeCall& call) const {
    if (threads_ > 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      call();
    }
    return call();
  }

 private:
  int threads_;
};

// The weights of a problem's calls, packed.
class Packing {
 public:
  Packing(Problem& problem, int threads)
      : backend_(MakeCpuBackend({.threads = threads, .isa = std::nullopt}).value()) {
    for (MatMulArgs& args : problem.calls()) {
      weights_.push_back(PackWeights(*backend_, args.b).value());
      args.b_packed = weights_.back().get();
    }
  }

 private:
  std::unique_ptr<Backend> backend_;  // whose memory the weights are in
  std::vector<std::unique_ptr<PackedWeights>> weights_;
};

void Gemm(benchmark::State& state, DType a_dtype, DType dtype, bool packed, int64_t m,
          WeightShape shape, int threads, std::string_view forced) {
  Problem problem(dtype, m, shape, a_dtype);
  std::optional<Packing> packing;
  if (packed) packing.emplace(problem, threads);
  Runner runner(threads, forced);
  const Kernel<MatMulArgs>* kernel = runner.Choose(problem.calls().front());
  if (kernel == nullptr) return state.SkipWithError("no kernel accepts");
  RawOneDnn raw(m, shape, RawOneDnn::Type::f32, threads);
  std::optional<RawOneDnn> raw_bf16;
  if (dtype != DType::kF32 && DetectCpu().avx512_bf16) {
    raw_bf16.emplace(m, shape, RawOneDnn::Type::bf16, threads);
  }
  std::vector<double> our_times, their_times, their_bf16_times;
  const Turns turns(threads);
  for (auto _ : state) {
    const double seconds = turns.Time([&] { return runner.Time(*kernel, problem.NextCall()); });
    state.SetIterationTime(seconds);
    our_times.push_back(seconds);
    their_times.push_back(turns.Time([&] { return raw.Time(); }));
    if (raw_bf16) their_bf16_times.push_back(turns.Time([&] { return raw_bf16->Time(); }));
  }
  const double ours = Median(our_times), theirs = Median(their_times);
  state.SetLabel(std::string(kernel->name));
  state.counters["GFLOP_s"] = problem.flops() / ours / 1e9;
  state.counters["of_onednn"] = theirs / ours;
  if (raw_bf16) state.counters["of_onednn_bf16"] = Median(their_bf16_times) / ours;
  state.counters["of_fma"] =
      problem.flops() / ours / 1e9 / MeasureFmaRate(threads, DetectCpu().isa);
}

void Gemv(benchmark::State& state, DType dtype, bool packed, int64_t m, WeightShape shape,
          int threads, std::string_view forced) {
  Problem problem(dtype, m, shape);
  std::optional<Packing> packing;
  if (packed) packing.emplace(problem, threads);
  Runner runner(threads, forced);
  const Kernel<MatMulArgs>* kernel = runner.Choose(problem.calls().front());
  if (kernel == nullptr) return state.SkipWithError("no kernel accepts");
  std::vector<double> times;
  double read = MeasureReadBandwidth(threads, 2 * kColdBytes);
  for (auto _ : state) {
    const double seconds = runner.Time(*kernel, problem.NextCall());
    state.SetIterationTime(seconds);
    times.push_back(seconds);
  }
  const double median = Median(times);
  read = std::max(read, MeasureReadBandwidth(threads, 2 * kColdBytes));
  state.SetLabel(std::string(kernel->name));
  state.counters["GB_s"] = static_cast<double>(problem.weight_bytes()) / median / 1e9;
  state.counters["read_GB_s"] = read;
  state.counters["of_read"] = static_cast<double>(problem.weight_bytes()) / median / 1e9 / read;
}

std::string NameOf(const char* what, const std::string& dtype, int64_t m, WeightShape shape,
                   int threads) {
  return std::string(what) + "/" + dtype + "/m:" + std::to_string(m) +
         "/n:" + std::to_string(shape.n) + "/k:" + std::to_string(shape.k) +
         "/threads:" + std::to_string(threads);
}

void RegisterAll(std::string_view forced) {
  const DType weights[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                           DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0};
  const auto backend = MakeCpuBackend({.threads = 1, .isa = std::nullopt}).value();
  std::vector<int> thread_counts = {1};
  if (AllThreads() > 1) thread_counts.push_back(AllThreads());
  for (const int threads : thread_counts) {
    for (const DType dtype : weights) {
      const std::string name(Name(dtype));
      for (const WeightShape shape : kShapes) {
        const auto gemv = [=](const std::string& label, bool packed) {
          for (const int64_t m : {1, 2, 4, 8}) {
            benchmark::RegisterBenchmark(NameOf("Gemv", label, m, shape, threads).c_str(),
                                         [=](benchmark::State& state) {
                                           Gemv(state, dtype, packed, m, shape, threads, forced);
                                         })
                ->UseManualTime()
                ->MinTime(0.1);
          }
        };
        gemv(name, false);
        const bool packs = PacksInPlace(*backend, dtype);
        if (packs) gemv(name + "_packed", true);
        const auto gemm = [=](const std::string& label, DType a_dtype, bool packed) {
          for (const int64_t m : {16, 32, 64, 128, 512}) {
            benchmark::RegisterBenchmark(NameOf("Gemm", label, m, shape, threads).c_str(),
                                         [=](benchmark::State& state) {
                                           Gemm(state, a_dtype, dtype, packed, m, shape, threads,
                                                forced);
                                         })
                ->UseManualTime()
                ->MinTime(0.1);
          }
        };
        if (dtype == DType::kF32) gemm(name + "_packed", DType::kF32, true);
        if (dtype == DType::kBF16) gemm(name + "_by_bf16", DType::kBF16, false);
        if (packs && dtype == DType::kBF16) gemm(name + "_packed_by_bf16", DType::kBF16, true);
        if (packs) gemm(name + "_packed", DType::kF32, true);
        gemm(name, DType::kF32, false);
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu

int main(int argc, char** argv) {
  constexpr std::string_view kFlag = "--kernel=";
  std::string_view forced;
  const auto end = std::remove_if(argv + 1, argv + argc, [&](const char* argument) {
    const bool is_flag = std::string_view(argument).starts_with(kFlag);
    if (is_flag) forced = std::string_view(argument).substr(kFlag.size());
    return is_flag;
  });
  argc = static_cast<int>(end - argv);
  tandem::cpu::RegisterAll(forced);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
