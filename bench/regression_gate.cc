// Times one representative call of every class of kernels against the machine's own rates, for
// bench/gate.py to compare with recorded values. Prints JSON.
//
//   regression_gate [--isa avx2] [--seconds S] [--only CLASS]...
//
// Built not to be disturbed, since it decides whether a change passes. One thread, timed by its
// processor time, so that other processes take nothing away. Operands fit the second-level cache,
// so that nobody else's memory traffic counts. Calls and yardsticks (bench/yardsticks.h) take turns
// in samples of about a tenth of a millisecond, and the lowest tenth of each counts: noise slows a
// sample down, and what lasts longer (a lower clock, a busy sibling of the core) slows the
// yardsticks as well; the very least is not taken, for the processor-time clock at times loses some
// when a thread changes its core. The ratio of a class to a yardstick is the work that the machine
// could have done during one call.
//
// What this cannot see: slowdowns of several threads together, and of memory beyond the cache.
//
// For the proof that the gate notices: a class named in TANDEM_GATE_PLANT (separated by commas)
// runs each call twice.
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "bench/op_runner.h"
#include "bench/yardsticks.h"
#include "cpu/backend.h"
#include "dispatch/ops.h"

namespace tandem::bench {
namespace {

struct Options {
  std::string isa;
  double seconds = 0.1;  // per class
  std::vector<std::string> only;
};

constexpr double kSampleSeconds = 100e-6;
constexpr size_t kMinSamples = 20;

double Now() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The value that a tenth of them lies below.
double LowestTenth(std::vector<double>& values) {
  const auto place = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 10);
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

class Gate {
 public:
  Gate(const Options& options, cpu::CpuFeatures features)
      : options_(options),
        features_(features),
        backend_(cpu::MakeCpuBackend({.threads = 1, .isa = features.isa}).value()),
        yardsticks_(Yardsticks(features.isa)),
        memory_(allocator_->Allocate(kYardstickBytes).value()) {
    std::fill_n(static_cast<float*>(memory_->data()), kYardstickBytes / 4, 0.5f);
    const char* planted = std::getenv("TANDEM_GATE_PLANT");
    planted_ = "," + std::string(planted == nullptr ? "" : planted) + ",";
  }

  void Decode();
  void Prefill();
  void Gemv();
  void Gemm();
  void Masks();
  void RowWise();
  void Others();
  const nlohmann::json& classes() const { return classes_; }
  bool ok() const { return ok_; }

 private:
  bool Wanted(const std::string& name) const {
    return options_.only.empty() ||
           std::find(options_.only.begin(), options_.only.end(), name) != options_.only.end();
  }

  // `make`: the arguments of one call, whose tensors it gets from the arena.
  template <typename Make>
  void Op(const std::string& name, Make make) {
    if (!Wanted(name)) return;
    TensorArena arena;
    const auto args = make(arena);
    OpRunner<std::decay_t<decltype(args)>> runner(1, args, "", features_);
    Measure(name, runner.name(), [&] { return runner.Run(args); });
  }

  void Measure(const std::string& name, const std::string& kernel,
               const std::function<bool()>& call) {
    const int times_each = planted_.find("," + name + ",") == std::string::npos ? 1 : 2;
    bool ok = call();  // prepares what is prepared once
    double begin = Now();
    for (int i = 0; i < 3; ++i) ok = call() && ok;
    const double estimate = (Now() - begin) / 3;
    const int calls = std::clamp(static_cast<int>(kSampleSeconds / estimate), 1, 4096);
    std::vector<double> times;
    std::vector<std::vector<double>> yardsticks(yardsticks_.size());
    const double start = Now();
    while (times.size() < kMinSamples || Now() - start < options_.seconds) {
      for (size_t i = 0; i < yardsticks_.size(); ++i) {
        begin = Now();
        yardsticks_[i].run(static_cast<float*>(memory_->data()));
        yardsticks[i].push_back(Now() - begin);
      }
      // The first call brings the operands back into the caches.
      ok = call() && ok;
      begin = Now();
      for (int i = 0; i < times_each * calls; ++i) ok = call() && ok;
      times.push_back((Now() - begin) / calls);
    }
    const double seconds = LowestTenth(times);
    ok_ = ok_ && ok;
    nlohmann::json entry = {{"kernel", kernel}, {"seconds", seconds}, {"ok", ok}};
    for (size_t i = 0; i < yardsticks_.size(); ++i) {
      entry["ratios"][std::string(yardsticks_[i].name)] =
          seconds * yardsticks_[i].work / LowestTenth(yardsticks[i]);
    }
    classes_[name] = entry;
  }

  const Options& options_;
  const cpu::CpuFeatures features_;
  const std::unique_ptr<Backend> backend_;
  const std::vector<Yardstick> yardsticks_;
  const std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  const std::shared_ptr<Buffer> memory_;
  std::string planted_;
  nlohmann::json classes_ = nlohmann::json::object();
  bool ok_ = true;
};

std::string Lower(DType dtype) { return std::string(Name(dtype)); }

// One query over a cache of 128 KiB (f32: 256): 8 query heads, 2 key/value heads of 128.
void Gate::Decode() {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    Op("attention_decode_" + Lower(dtype), [&](TensorArena& arena) {
      const int64_t keys = 128;
      AttentionArgs args;
      args.q = arena.Make(DType::kF32, {1, 8, 1, 128});
      args.k = arena.Make(dtype, {1, 2, keys, 128});
      args.v = arena.Make(dtype, {1, 2, keys, 128});
      args.out = arena.Make(DType::kF32, {1, 8, 1, 128});
      if (dtype == DType::kI8) {
        args.k_scale = arena.Make(DType::kF32, {1, 2, keys}, 0.001f, 0.01f);
        args.v_scale = arena.Make(DType::kF32, {1, 2, keys}, 0.001f, 0.01f);
      }
      return args;
    });
  }
}

// A causal prompt of 128: 4 query heads and 1 key/value head of 64.
void Gate::Prefill() {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Op("attention_prefill_" + Lower(dtype), [&](TensorArena& arena) {
      const Shape queries = {1, 4, 128, 64}, keys = {1, 1, 128, 64};
      AttentionArgs args;
      args.q = arena.Make(dtype, queries);
      args.k = arena.Make(dtype, keys);
      args.v = arena.Make(dtype, keys);
      args.out = arena.Make(dtype, queries);
      return args;
    });
  }
}

constexpr DType kWeights[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                              DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0};

MatMulArgs Product(TensorArena& arena, DType a, DType weights, int64_t m, int64_t n, int64_t k) {
  MatMulArgs args;
  args.a = arena.Make(a, {m, k});
  args.b = arena.Make(weights, {n, k});
  args.out = arena.Make(a, {m, n});
  return args;
}

// One row by weights [64, 1024]: 256 KiB in f32.
void Gate::Gemv() {
  for (const DType weights : kWeights) {
    Op("gemv_" + Lower(weights),
       [&](TensorArena& arena) { return Product(arena, DType::kF32, weights, 1, 64, 1024); });
  }
}

// 64 rows by weights [128, 512].
void Gate::Gemm() {
  for (const DType weights : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_K}) {
    Op("gemm_" + Lower(weights),
       [&](TensorArena& arena) { return Product(arena, DType::kF32, weights, 64, 128, 512); });
  }
  for (const DType weights : {DType::kF32, DType::kQ8_0, DType::kQ4_K}) {
    const std::string name = "gemm_packed_" + Lower(weights);
    if (!Wanted(name)) continue;
    std::unique_ptr<PackedWeights> packed;
    TensorArena arena;
    MatMulArgs args = Product(arena, DType::kF32, weights, 64, 128, 512);
    auto made = cpu::PackWeights(*backend_, args.b);
    if (!made.ok()) continue;  // no such format on this instruction set
    packed = *std::move(made);
    args.b_packed = packed.get();
    OpRunner<MatMulArgs> runner(1, args, "", features_);
    Measure(name, runner.name(), [&] { return runner.Run(args); });
  }
}

// Causal: 128 KiB of them.
void Gate::Masks() {
  for (const auto& [dtype, length] : {std::pair<DType, int64_t>{DType::kF32, 180},
                                      {DType::kF16, 256},
                                      {DType::kBool, 360},
                                      {DType::kU32, 1024}}) {
    Op("mask_" + Lower(dtype), [&](TensorArena& arena) {
      MaskArgs args;
      args.rule.q_len = args.rule.kv_len = length;
      args.out = arena.Make(dtype, {length, MaskColumns(dtype, length)});
      return args;
    });
  }
}

// 8 rows of 2048 in f32: 64 KiB per operand.
void Gate::RowWise() {
  const Shape shape = {8, 2048};
  const DType f32 = DType::kF32;
  Op("rms_norm", [&](TensorArena& arena) {
    RmsNormArgs args;
    args.x = arena.Make(f32, shape);
    args.weight = arena.Make(f32, {2048});
    args.out = arena.Make(f32, shape);
    return args;
  });
  Op("softmax", [&](TensorArena& arena) {
    return SoftmaxArgs{.x = arena.Make(f32, shape, -8.0f, 8.0f), .out = arena.Make(f32, shape)};
  });
  Op("silu_mul", [&](TensorArena& arena) {
    return SiluMulArgs{.gate = arena.Make(f32, shape, -8.0f, 8.0f),
                       .up = arena.Make(f32, shape),
                       .out = arena.Make(f32, shape)};
  });
  Op("add", [&](TensorArena& arena) {
    return AddArgs{
        .a = arena.Make(f32, shape), .b = arena.Make(f32, shape), .out = arena.Make(f32, shape)};
  });
  for (const auto& [from, to] : {std::pair{f32, DType::kF16},
                                 {DType::kF16, f32},
                                 {f32, DType::kQ8_0},
                                 {DType::kQ4_K, f32}}) {
    Op("cast_" + Lower(from) + "_to_" + Lower(to), [&](TensorArena& arena) {
      return CastArgs{.x = arena.Make(from, shape), .out = arena.Make(to, shape)};
    });
  }
}

void Gate::Others() {
  const DType f32 = DType::kF32;
  Op("rope", [&](TensorArena& arena) {
    const int64_t tokens = 8;
    RopeArgs args;
    args.x = args.out = arena.Make(f32, {1, 16, tokens, 128});
    args.positions = arena.Make(DType::kI32, {tokens});
    for (int32_t i = 0; i < tokens; ++i) args.positions.As<int32_t>()[i] = i + 1000;
    args.inv_freq = arena.Make(f32, {64}, 1e-4f, 1.0f);
    args.pairing = RopePairing::kHalf;
    return args;
  });
  for (const DType cache : {DType::kF16, DType::kI8}) {
    Op("kv_append_" + Lower(cache), [&](TensorArena& arena) {
      const int64_t heads = 2, tokens = 16, capacity = 64;
      KvAppendArgs args;
      args.k = arena.Make(f32, {1, heads, tokens, 128});
      args.v = arena.Make(f32, {1, heads, tokens, 128});
      args.k_cache = arena.Make(cache, {1, heads, capacity, 128});
      args.v_cache = arena.Make(cache, {1, heads, capacity, 128});
      args.position = 8;
      if (cache == DType::kI8) {
        args.k_scale = arena.Make(f32, {1, heads, capacity});
        args.v_scale = arena.Make(f32, {1, heads, capacity});
      }
      return args;
    });
  }
  Op("argmax", [&](TensorArena& arena) {
    return ArgMaxArgs{.x = arena.Make(f32, {1, 32000}), .out = arena.Make(DType::kI32, {1})};
  });
  Op("sample", [&](TensorArena& arena) {
    SampleArgs args;
    args.logits = arena.Make(f32, {1, 32000}, -10.0f, 10.0f);
    args.uniform = arena.Make(f32, {1}, 0.5f, 0.6f);
    args.out = arena.Make(DType::kI32, {1});
    args.temperature = 0.8f;
    args.top_k = 40;
    args.top_p = 0.95f;
    return args;
  });
  if (Wanted("merge_attention")) {
    TensorArena arena;
    std::vector<TensorView> outs, lses;
    for (int part = 0; part < 4; ++part) {
      outs.push_back(arena.Make(f32, {1, 32, 1, 128}));
      lses.push_back(arena.Make(f32, {1, 32, 1}, 5.0f, 9.0f));
    }
    const MergeAttentionArgs args = {.out_parts = outs,
                                     .lse_parts = lses,
                                     .out = arena.Make(f32, {1, 32, 1, 128}),
                                     .lse = arena.Make(f32, {1, 32, 1})};
    OpRunner<MergeAttentionArgs> runner(1, args, "", features_);
    Measure("merge_attention", runner.name(), [&] { return runner.Run(args); });
  }
  if (Wanted("call")) {  // the walk of one call through dispatch/, around next to no work
    ContextOptions options;
    options.threads = 1;
    options.isa = std::string(cpu::Name(features_.isa));
    options.kernel_profile = "off";
    const std::unique_ptr<Context> context = Context::Create(options).value();
    TensorArena arena;
    const AddArgs args = {.a = arena.Make(f32, {1, 16}),
                          .b = arena.Make(f32, {1, 16}),
                          .out = arena.Make(f32, {1, 16})};
    Measure("call", "add", [&] { return AddInto(*context, args).ok(); });
  }
}

// Everything that decides which code runs.
std::string Describe(const cpu::CpuFeatures& features) {
  std::string text(cpu::Name(features.isa));
  if (features.avx512_vnni) text += "+vnni";
  if (features.avx512_bf16) text += "+bf16";
  if (features.avx512_fp16) text += "+fp16";
  if (features.avx_vnni) text += "+avxvnni";
  if (features.amx_bf16) text += "+amxbf16";
  if (features.amx_int8) text += "+amxint8";
  return text;
}

// Is this the code that users run?
bool Optimised() {
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  return true;
#else
  return false;
#endif
}

int Run(const Options& options) {
  cpu::CpuFeatures features = cpu::DetectCpu();
  if (!options.isa.empty()) {
    const cpu::Isa isa = cpu::ParseIsa(options.isa).value();
    if (isa > features.isa) {
      std::cerr << "this processor has no " << options.isa << "\n";
      return 2;
    }
    features = cpu::Restrict(features, isa);
  }
  Gate gate(options, features);
  gate.Decode();
  gate.Prefill();
  gate.Gemv();
  gate.Gemm();
  gate.Masks();
  gate.RowWise();
  gate.Others();
  const nlohmann::json result = {{"cpu", cpu::DescribeCpu().model},
                                 {"isa", std::string(cpu::Name(features.isa))},
                                 {"features", Describe(features)},
                                 {"optimised", Optimised()},
                                 {"classes", gate.classes()}};
  std::cout << result.dump(1) << "\n";
  if (!gate.ok()) std::cerr << "a call failed\n";
  return gate.ok() ? 0 : 1;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  CLI::App app("Times every class of kernels against the machine's own rates.", "regression_gate");
  tandem::bench::Options options;
  app.add_option("--isa", options.isa, "highest instruction set to use")
      ->check(CLI::IsMember({"scalar", "avx2", "avx512"}));
  app.add_option("--seconds", options.seconds, "time for each class")
      ->check(CLI::Range(0.001, 60.0))
      ->capture_default_str();
  app.add_option("--only", options.only, "measure this class only (repeatable)");
  CLI11_PARSE(app, argc, argv);
  return tandem::bench::Run(options);
}
