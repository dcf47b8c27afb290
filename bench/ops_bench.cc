// The small ops of a decoder layer against read bandwidth, measured in the same process just
// before.
//
//   <op>/<shape>/<dtype>/threads:N   GB_s: bytes of all operands, each counted once, per second.
//   read_GB_s: read bandwidth of as many bytes. of_read: their ratio; an op that also writes cannot
//   reach 1. Decode shapes are one token, prefill shapes 512.
#include <benchmark/benchmark.h>

#include <functional>

#include "bench/op_runner.h"
#include "cpu/backend.h"

namespace tandem::bench {
namespace {

template <typename Args>
void Report(benchmark::State& state, const Args& args, int64_t bytes, int threads) {
  const double bandwidth =
      cpu::MeasureReadBandwidth(threads, std::max<int64_t>(bytes, int64_t{1} << 16));
  OpRunner<Args> runner(threads, args);
  for (auto _ : state) {
    if (!runner.Run(args)) state.SkipWithError("run failed");
    benchmark::ClobberMemory();
  }
  const double median = MedianSeconds([&] { (void)runner.Run(args); });
  state.SetLabel(runner.name());
  state.counters["median_us"] = median * 1e6;
  state.counters["GB_s"] = static_cast<double>(bytes) / median * 1e-9;
  state.counters["read_GB_s"] = bandwidth;
  state.counters["of_read"] = static_cast<double>(bytes) / median * 1e-9 / bandwidth;
}

int64_t Bytes(std::initializer_list<TensorView> views) {
  int64_t bytes = 0;
  for (const TensorView& view : views) bytes += ByteExtent(view);
  return bytes;
}

void Softmax(benchmark::State& state, int64_t rows, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  const SoftmaxArgs args = {.x = arena.Make(dtype, {rows, columns}, -8.0f, 8.0f),
                            .out = arena.Make(dtype, {rows, columns})};
  Report(state, args, Bytes({args.x, args.out}), threads);
}

void RmsNorm(benchmark::State& state, int64_t rows, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  RmsNormArgs args;
  args.x = arena.Make(dtype, {rows, columns});
  args.weight = arena.Make(DType::kF32, {columns});
  args.out = arena.Make(dtype, {rows, columns});
  Report(state, args, Bytes({args.x, args.weight, args.out}), threads);
}

// The sum is written over the residual, as a decoder layer does.
void AddRmsNorm(benchmark::State& state, int64_t rows, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  RmsNormArgs args;
  args.x = arena.Make(dtype, {rows, columns});
  args.weight = arena.Make(DType::kF32, {columns});
  args.residual = arena.Make(dtype, {rows, columns}, -1e-20f, 1e-20f);  // sums stay finite
  args.sum = args.residual;
  args.out = arena.Make(dtype, {rows, columns});
  Report(state, args, Bytes({args.x, args.weight, args.residual, args.sum, args.out}), threads);
}

void SiluMul(benchmark::State& state, int64_t rows, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  const SiluMulArgs args = {.gate = arena.Make(dtype, {rows, columns}, -8.0f, 8.0f),
                            .up = arena.Make(dtype, {rows, columns}),
                            .out = arena.Make(dtype, {rows, columns})};
  Report(state, args, Bytes({args.gate, args.up, args.out}), threads);
}

void Add(benchmark::State& state, int64_t rows, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  const AddArgs args = {.a = arena.Make(dtype, {rows, columns}),
                        .b = arena.Make(dtype, {rows, columns}),
                        .out = arena.Make(dtype, {rows, columns})};
  Report(state, args, Bytes({args.a, args.b, args.out}), threads);
}

void Rope(benchmark::State& state, int64_t tokens, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  const int64_t head_dim = 128;
  const Shape shape = {1, columns / head_dim, tokens, head_dim};
  RopeArgs args;
  args.x = arena.Make(dtype, shape);
  args.positions = arena.Make(DType::kI32, {tokens});
  for (int32_t i = 0; i < tokens; ++i) args.positions.As<int32_t>()[i] = i + 1000;
  args.inv_freq = arena.Make(DType::kF32, {head_dim / 2}, 1e-4f, 1.0f);
  args.out = args.x;
  args.pairing = RopePairing::kHalf;
  Report(state, args, 2 * Bytes({args.x}), threads);
}

// 8 key/value heads of 128 and 32 query heads, keys and queries (in place) rotated on the way.
void KvAppend(benchmark::State& state, int64_t tokens, DType cache, bool rope, int threads) {
  TensorArena arena;
  const int64_t head_dim = 128, heads = 8, capacity = 1024;
  KvAppendArgs args;
  args.k = arena.Make(DType::kF32, {1, heads, tokens, head_dim});
  args.v = arena.Make(DType::kF32, {1, heads, tokens, head_dim});
  args.k_cache = arena.Make(cache, {1, heads, capacity, head_dim});
  args.v_cache = arena.Make(cache, {1, heads, capacity, head_dim});
  args.position = capacity - tokens;
  if (cache == DType::kI8) {
    args.k_scale = arena.Make(DType::kF32, {1, heads, capacity});
    args.v_scale = arena.Make(DType::kF32, {1, heads, capacity});
  }
  int64_t bytes = Bytes({args.k, args.v}) + 2 * heads * tokens * head_dim * BlockBytes(cache);
  if (rope) {
    args.rope.positions = arena.Make(DType::kI32, {tokens});
    for (int32_t i = 0; i < tokens; ++i) args.rope.positions.As<int32_t>()[i] = i + 1000;
    args.rope.inv_freq = arena.Make(DType::kF32, {head_dim / 2}, 1e-4f, 1.0f);
    args.rope.pairing = RopePairing::kHalf;
    args.q = arena.Make(DType::kF32, {1, 4 * heads, tokens, head_dim});
    args.q_out = args.q;
    bytes += 2 * Bytes({args.q});
  }
  Report(state, args, bytes, threads);
}

void Cast(benchmark::State& state, int64_t rows, int64_t columns, DType from, DType to,
          int threads) {
  TensorArena arena;
  const CastArgs args = {.x = arena.Make(from, {rows, columns}),
                         .out = arena.Make(to, {rows, columns})};
  Report(state, args, Bytes({args.x, args.out}), threads);
}

void ArgMax(benchmark::State& state, int64_t columns, DType dtype, int threads) {
  TensorArena arena;
  const ArgMaxArgs args = {.x = arena.Make(dtype, {1, columns}),
                           .out = arena.Make(DType::kI32, {1})};
  Report(state, args, Bytes({args.x}), threads);
}

void Sample(benchmark::State& state, int64_t columns, int64_t top_k, float top_p, int threads) {
  TensorArena arena;
  SampleArgs args;
  // About normal(0, 3), as a language model's.
  args.logits = arena.Make(DType::kF32, {1, columns}, -3.0f, 3.0f);
  const TensorView noise = arena.Make(DType::kF32, {3, columns + 1}, -3.0f, 3.0f);
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t r = 0; r < 3; ++r) {
      args.logits.As<float>()[i] += noise.As<float>()[(r + 1) * columns - i * 7 % columns];
    }
  }
  args.uniform = arena.Make(DType::kF32, {1}, 0.3f, 0.6f);
  args.out = arena.Make(DType::kI32, {1});
  args.temperature = 0.8f;
  args.top_k = top_k;
  args.top_p = top_p;
  Report(state, args, Bytes({args.logits}), threads);
}

// Attention over a cache in `parts` parts, 32 heads of 128.
void MergeAttention(benchmark::State& state, int64_t queries, int64_t parts, DType dtype,
                    int threads) {
  TensorArena arena;
  std::vector<TensorView> outs, lses;
  int64_t bytes = 0;
  for (int64_t p = 0; p < parts; ++p) {
    outs.push_back(arena.Make(dtype, {1, 32, queries, 128}));
    lses.push_back(arena.Make(DType::kF32, {1, 32, queries}, 5.0f, 9.0f));
    bytes += Bytes({outs.back(), lses.back()});
  }
  const MergeAttentionArgs args = {.out_parts = outs,
                                   .lse_parts = lses,
                                   .out = arena.Make(dtype, {1, 32, queries, 128}),
                                   .lse = arena.Make(DType::kF32, {1, 32, queries})};
  Report(state, args, bytes + Bytes({args.out, args.lse}), threads);
}

using Bench = std::function<void(benchmark::State&, int threads)>;

void Add(const std::string& name, const Bench& bench) {
  const int cores = cpu::DescribeCpu().cores;
  for (int threads : {1, cores}) {
    benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(),
                                 [=](benchmark::State& state) { bench(state, threads); })
        ->UseRealTime();
    if (cores == 1) break;
  }
}

void Register() {
  struct RowWise {
    const char* name;
    void (*run)(benchmark::State&, int64_t, int64_t, DType, int);
    int64_t columns;
  };
  for (const RowWise& op :
       {RowWise{"softmax", Softmax, 4096}, RowWise{"rms_norm", RmsNorm, 4096},
        RowWise{"add_rms_norm", AddRmsNorm, 4096}, RowWise{"silu_mul", SiluMul, 14336},
        RowWise{"add", Add, 4096}, RowWise{"rope", Rope, 4096}}) {
    for (int64_t rows : {1, 512}) {
      for (DType dtype : {DType::kF32, DType::kF16}) {
        const std::string name = std::string(op.name) + "/" + std::to_string(rows) + "x" +
                                 std::to_string(op.columns) + "/" + std::string(Name(dtype));
        Add(name, [=](benchmark::State& state, int threads) {
          op.run(state, rows, op.columns, dtype, threads);
        });
      }
    }
  }
  for (int64_t tokens : {1, 512}) {
    for (DType cache : {DType::kF32, DType::kF16, DType::kI8}) {
      for (bool rope : {false, true}) {
        const std::string name = std::string(rope ? "rope_kv_append/" : "kv_append/") +
                                 std::to_string(tokens) + "x8x128/" + std::string(Name(cache));
        Add(name, [=](benchmark::State& state, int threads) {
          KvAppend(state, tokens, cache, rope, threads);
        });
      }
    }
  }
  const DType f32 = DType::kF32;
  std::vector<std::pair<DType, DType>> casts = {
      {f32, DType::kF16}, {DType::kF16, f32}, {f32, DType::kBF16}};
  for (DType block :
       {DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0}) {
    casts.emplace_back(f32, block);
    casts.emplace_back(block, f32);
  }
  for (const auto& [from, to] : casts) {
    const std::string name =
        "cast/512x4096/" + std::string(Name(from)) + "_to_" + std::string(Name(to));
    Add(name, [from = from, to = to](benchmark::State& state, int threads) {
      Cast(state, 512, 4096, from, to, threads);
    });
  }
  for (int64_t queries : {1, 512}) {
    for (int64_t parts : {2, 8, 64}) {
      if (queries * parts > 5000) continue;
      for (DType dtype : {DType::kF32, DType::kF16}) {
        const std::string name = "merge_attention/" + std::to_string(queries) +
                                 "x32x128/parts:" + std::to_string(parts) + "/" +
                                 std::string(Name(dtype));
        Add(name, [=](benchmark::State& state, int threads) {
          MergeAttention(state, queries, parts, dtype, threads);
        });
      }
    }
  }
  for (int64_t vocabulary : {32000, 151936}) {
    const std::string size = std::to_string(vocabulary);
    Add("argmax/" + size, [=](benchmark::State& state, int threads) {
      ArgMax(state, vocabulary, DType::kF32, threads);
    });
    Add("sample/" + size + "/top_k:40", [=](benchmark::State& state, int threads) {
      Sample(state, vocabulary, 40, 0.95f, threads);
    });
    Add("sample/" + size + "/top_p:0.95", [=](benchmark::State& state, int threads) {
      Sample(state, vocabulary, 0, 0.95f, threads);
    });
  }
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
