#include "model/decoder_chain.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "dispatch/facts.h"
#include "dispatch/split_costs.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

int64_t Chunk(const DecoderPlanInputs& inputs) {
  return std::min(inputs.session.ubatch, CacheTokens(inputs));
}

// A tensor of which only shape and type are looked at.
TensorView Shaped(DType dtype, const Shape& shape, DeviceKind device) {
  return MakeView(static_cast<void*>(nullptr), dtype, shape, {device, 0});
}

// The calls of the chain's parts, in their order, for `m` tokens of which the last sees `kv_len`.
class Calls {
 public:
  Calls(const DecoderPlanInputs& inputs, int64_t m, int64_t kv_len, DeviceKind device)
      : inputs_(inputs), c_(inputs.config), m_(m), kv_len_(kv_len), device_(device) {}

  std::vector<OpFacts> Embedding() const {
    EmbeddingArgs args;
    args.table = inputs_.weights.embedding;
    args.ids = Shaped(DType::kI32, {m_}, device_);
    args.out = X();
    return {Here(FactsOf(args))};
  }
  // All but the cache's part.
  std::vector<OpFacts> AroundCache(const LayerWeights& w) const {
    std::vector<OpFacts> calls = {Norm(c_.hidden), Product(w.k), Product(w.v), Product(w.q)};
    for (const TensorView* norm : {&w.k_norm, &w.q_norm}) {
      const int64_t heads = norm == &w.k_norm ? c_.kv_heads : c_.heads;
      if (norm->present()) calls.push_back(Norm(heads * c_.head_dim));
    }
    calls.push_back(Product(w.attn_output));
    return calls;
  }
  // Of the last `tokens`, to a cache on the device; with all queries, which it rotates, or none.
  OpFacts Append(int64_t tokens, bool with_q) const {
    KvAppendArgs append;
    append.k = Heads(c_.kv_heads, tokens, c_.head_dim);
    append.v = Heads(c_.kv_heads, tokens, c_.v_head_dim);
    if (with_q) append.q = append.q_out = Heads(c_.heads, m_, c_.head_dim);
    append.k_cache = Cache(c_.head_dim);
    append.v_cache = Cache(c_.v_head_dim);
    return Here(FactsOf(append));
  }
  // Of the queries alone.
  OpFacts Rotation() const {
    RopeArgs rope;
    rope.x = rope.out = Heads(c_.heads, m_, c_.head_dim);
    rope.positions = Shaped(DType::kI32, {m_}, device_);
    rope.inv_freq = Shaped(DType::kF32, {c_.head_dim / 2}, device_);
    return Here(FactsOf(rope));
  }
  OpFacts AttentionToCache() const {
    AttentionArgs attention;
    attention.q = Heads(c_.heads, m_, c_.head_dim);
    attention.k = Cache(c_.head_dim);
    attention.v = Cache(c_.v_head_dim);
    if (inputs_.session.kv_dtype == DType::kI8) {
      attention.k_scale = attention.v_scale =
          Shaped(DType::kF32, {1, c_.kv_heads, kv_len_}, device_);
    }
    attention.out = Heads(c_.heads, m_, c_.v_head_dim);
    return Here(FactsOf(attention));
  }
  std::vector<OpFacts> FeedForward(const LayerWeights& w) const {
    SiluMulArgs activation;
    activation.gate = activation.up = activation.out = Shaped(DType::kF32, {m_, c_.ffn}, device_);
    return {Norm(c_.hidden), Product(w.gate), Product(w.up), Here(FactsOf(activation)),
            Product(w.down)};
  }
  // Of the last token alone.
  std::vector<OpFacts> Output() const {
    const Calls one(inputs_, 1, kv_len_, device_);
    ArgMaxArgs choice;
    choice.x = Shaped(DType::kF32, {1, c_.vocabulary}, device_);
    choice.out = Shaped(DType::kI32, {1}, device_);
    return {one.Norm(c_.hidden), one.Product(inputs_.weights.output), Here(FactsOf(choice))};
  }

 private:
  TensorView Heads(int64_t count, int64_t tokens, int64_t dim) const {
    return Shaped(DType::kF32, {1, count, tokens, dim}, device_);
  }
  TensorView Cache(int64_t dim) const {
    return Shaped(inputs_.session.kv_dtype, {1, c_.kv_heads, kv_len_, dim}, device_);
  }
  TensorView X() const { return Shaped(DType::kF32, {m_, c_.hidden}, device_); }
  OpFacts Here(OpFacts facts) const {
    facts.operands = {device_, 0};
    return facts;
  }
  OpFacts Norm(int64_t columns) const {
    RmsNormArgs args;
    args.x = args.out = Shaped(DType::kF32, {m_, columns}, device_);
    args.weight = Shaped(DType::kF32, {columns}, device_);
    return Here(FactsOf(args));
  }
  OpFacts Product(const TensorView& weights) const {
    MatMulArgs args;
    args.a = Shaped(DType::kF32, {m_, weights.dim(1)}, device_);
    args.b = weights;
    args.out = Shaped(DType::kF32, {m_, weights.dim(0)}, device_);
    OpFacts facts = Here(FactsOf(args));
    facts.packed = device_ == kCpu && inputs_.packed(weights.dtype);
    return facts;
  }

  const DecoderPlanInputs& inputs_;
  const DecoderConfig& c_;
  int64_t m_, kv_len_;
  DeviceKind device_;
};

// Of calls that run one after the other; of a GPU without what it takes to get them going.
double Seconds(const DecoderMachine& machine, std::span<const OpFacts> calls, DeviceKind device) {
  double total = 0.0;
  for (const OpFacts& facts : calls) {
    const std::optional<double> seconds = machine.call_seconds(facts, device);
    if (!seconds) return kNever;
    const double queued = device == kGpu ? machine.launch_seconds[device] : 0.0;
    total += std::max(*seconds - queued, 0.0);
  }
  return total;
}

// How often a part runs in the job, and as what.
struct Phase {
  double times;
  int64_t tokens;
  int64_t kv_len;
};

// A sixth, a half and five sixths of the way: their mean is that of the way where time is linear in
// the length, and close to it where a second device joins in.
constexpr double kStations[] = {1.0 / 6.0, 0.5, 5.0 / 6.0};

std::vector<Phase> Phases(const DecoderPlanInputs& inputs) {
  const int64_t tokens = CacheTokens(inputs), chunk = Chunk(inputs);
  const int64_t prompt = std::min(inputs.job.prompt_tokens, tokens);
  const int64_t generated = inputs.job.generated_tokens;
  std::vector<Phase> phases;
  const auto add = [&](double times, int64_t m, int64_t begin, int64_t end) {
    for (const double station : kStations) {
      const double length = static_cast<double>(begin) +
                            station * static_cast<double>(std::max<int64_t>(0, end - begin));
      phases.push_back({times / static_cast<double>(std::size(kStations)), m,
                        std::max({m, static_cast<int64_t>(length), int64_t{1}})});
    }
  };
  // Behind the prompt; without one, the cache fills from nothing.
  if (generated > 0) {
    add(static_cast<double>(generated), 1, prompt,
        prompt == 0 ? tokens : std::min(prompt + generated, tokens));
  }
  if (prompt > 0) {
    const int64_t m = std::min(chunk, prompt);
    add(static_cast<double>(inputs.job.prompt_tokens) / static_cast<double>(m), m, 0, prompt);
  }
  return phases;
}

int64_t Bytes(DType dtype, std::initializer_list<int64_t> extents) {
  int64_t elements = 1;
  for (const int64_t extent : extents) elements *= extent;
  return ByteOffset(dtype, elements);
}

// Block bytes of weights.
int64_t Blocks(const DecoderMemory& memory, std::initializer_list<const TensorView*> views) {
  int64_t total = 0;
  for (const TensorView* view : views) {
    if (view->present()) total += memory.block_bytes(ByteExtent(*view));
  }
  return total;
}

// What the parts take, over the whole job.
class PartTimes {
 public:
  PartTimes(const DecoderPlanInputs& inputs, const DecoderMachine* machine)
      : inputs_(inputs), machine_(machine), phases_(Phases(inputs)) {
    if (machine == nullptr) return;
    costs_.call = machine->call_seconds;
    costs_.copy = machine->copy_seconds;
    costs_.queue_seconds = machine->launch_seconds[kGpu];
    costs_.shared_bytes_per_second = machine->shared_bytes_per_second;
  }

  PerDevice<double> Embedding() const {
    return Of([](const Calls& calls) { return calls.Embedding(); });
  }
  PerDevice<double> FeedForward(const LayerWeights& w) const {
    return Of([&](const Calls& calls) { return calls.FeedForward(w); });
  }
  PerDevice<double> Output() const {
    return Of([](const Calls& calls) { return calls.Output(); });
  }
  PerDevice<double> Attention(const LayerWeights& w) const {
    PerDevice<double> seconds = Of([&](const Calls& calls) { return calls.AroundCache(w); });
    if (machine_ == nullptr) return seconds;
    for (const DeviceKind device : kDeviceKinds) {
      for (const Phase& phase : phases_) seconds[device] += phase.times * Cache(phase, device);
    }
    return seconds;
  }

 private:
  template <typename CallsOf>
  PerDevice<double> Of(const CallsOf& calls_of) const {
    PerDevice<double> seconds;
    if (machine_ == nullptr) return seconds;
    for (const DeviceKind device : kDeviceKinds) {
      for (const Phase& phase : phases_) {
        const Calls calls(inputs_, phase.tokens, phase.kv_len, device);
        seconds[device] += phase.times * Seconds(*machine_, calls_of(calls), device);
      }
    }
    return seconds;
  }

  // Appending to the cache and attending to it.
  double Cache(const Phase& phase, DeviceKind device) const {
    const Calls calls(inputs_, phase.tokens, phase.kv_len, device);
    const int64_t rows = inputs_.gpu_cache_rows.value_or(phase.kv_len);
    if (device == kCpu || phase.kv_len <= rows) {
      const OpFacts both[] = {calls.Append(phase.tokens, /*with_q=*/true),
                              calls.AttentionToCache()};
      return Seconds(*machine_, both, device);
    }
    return SplitAppend(phase, rows) + SplitAttention(phase, rows);
  }

  // New tokens whose rows are the host's are fetched from the GPU, with positions and frequencies.
  double SplitAppend(const Phase& phase, int64_t rows) const {
    const DecoderConfig& c = inputs_.config;
    const int64_t on_host = std::min(phase.tokens, phase.kv_len - rows);
    const Calls gpu(inputs_, phase.tokens, phase.kv_len, kGpu);
    std::vector<OpFacts> there = {gpu.Rotation()};
    if (on_host < phase.tokens) there.push_back(gpu.Append(phase.tokens - on_host, false));
    double seconds = Seconds(*machine_, there, kGpu) + machine_->launch_seconds[kGpu];
    for (const int64_t bytes :
         {on_host * c.kv_heads * c.head_dim * 4, on_host * c.kv_heads * c.v_head_dim * 4,
          on_host * 4, c.head_dim * 2}) {
      seconds += machine_->copy_seconds(kGpu, kCpu, bytes);
    }
    const OpFacts here[] = {
        Calls(inputs_, phase.tokens, phase.kv_len, kCpu).Append(on_host, /*with_q=*/false)};
    return seconds + Seconds(*machine_, here, kCpu);
  }

  // With launches: the GPU's queue is empty when the host comes back to it.
  double SplitAttention(const Phase& phase, int64_t rows) const {
    const DecoderConfig& c = inputs_.config;
    CacheCall call;
    call.cache = {.kv_heads = c.kv_heads,
                  .capacity = phase.kv_len,
                  .head_dim = c.head_dim,
                  .v_head_dim = c.v_head_dim,
                  .dtype = inputs_.session.kv_dtype};
    call.length = phase.kv_len;
    call.q_heads = c.heads;
    call.q_len = phase.tokens;
    return AttentionSeconds(costs_, call, kGpu, rows);
  }

  const DecoderPlanInputs& inputs_;
  const DecoderMachine* machine_;
  const std::vector<Phase> phases_;
  SplitCosts costs_;
};

// Do they take the same time and memory?
bool SameShapes(const LayerWeights& a, const LayerWeights& b) {
  const auto same = [](const TensorView& x, const TensorView& y) {
    return x.present() == y.present() && x.dtype == y.dtype && x.shape == y.shape;
  };
  return same(a.attn_norm, b.attn_norm) && same(a.q, b.q) && same(a.k, b.k) && same(a.v, b.v) &&
         same(a.q_bias, b.q_bias) && same(a.k_bias, b.k_bias) && same(a.v_bias, b.v_bias) &&
         same(a.q_norm, b.q_norm) && same(a.k_norm, b.k_norm) &&
         same(a.attn_output, b.attn_output) && same(a.ffn_norm, b.ffn_norm) &&
         same(a.gate, b.gate) && same(a.up, b.up) && same(a.down, b.down);
}

}  // namespace

int64_t CacheTokens(const DecoderPlanInputs& inputs) {
  return inputs.session.CapacityFor(inputs.config.context);
}

int64_t CacheBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory, int64_t tokens) {
  const DecoderConfig& c = inputs.config;
  const int64_t rows = c.kv_heads * tokens;
  int64_t total = 0;
  if (rows == 0) return 0;
  for (const int64_t dim : {c.head_dim, c.v_head_dim}) {
    total += memory.block_bytes(Bytes(inputs.session.kv_dtype, {rows, dim}));
    if (inputs.session.kv_dtype == DType::kI8) total += memory.block_bytes(rows * 4);
  }
  return total;
}

int64_t OutputBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory) {
  return Blocks(memory, {&inputs.weights.output_norm, &inputs.weights.output}) +
         memory.block_bytes(inputs.config.vocabulary * 4);
}

int64_t FixedBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory) {
  const DecoderConfig& c = inputs.config;
  const int64_t rows = Chunk(inputs);
  const auto columns = [&](std::initializer_list<int64_t> counts) {
    int64_t total = 0;
    for (const int64_t count : counts) {
      const int64_t bytes = rows * count * 4;
      total += (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
    }
    return total;
  };
  const int64_t shared = std::max(columns({c.q_dim(), c.k_dim(), c.v_dim(), c.attention_dim()}),
                                  columns({c.ffn, c.ffn}));
  int64_t partial = 0;  // results of attention to caches in two places, of either device
  if (inputs.gpu_cache_rows) {
    partial = 2 * memory.block_bytes(columns({c.attention_dim(), c.heads}) + kBufferAlignment);
  }
  constexpr int64_t kSmall = 4096;  // token, position and length of a step; RoPE's frequencies
  return partial + memory.block_bytes(shared) + 2 * memory.block_bytes(rows * c.hidden * 4) +
         memory.block_bytes(rows * 4) + 2 * memory.block_bytes(kSmall) +
         (memory.workspace_bytes > 0 ? memory.block_bytes(memory.workspace_bytes) : 0);
}

Chain ChainOf(const DecoderPlanInputs& inputs, const DecoderMachine* machine,
              const DecoderMemory& memory) {
  const DecoderConfig& c = inputs.config;
  const DecoderWeights& w = inputs.weights;
  const PartTimes times(inputs, machine);
  const int64_t tokens = CacheTokens(inputs);
  const int64_t cache =
      CacheBytes(inputs, memory, std::min(tokens, inputs.gpu_cache_rows.value_or(tokens)));
  const int64_t x_bytes = c.hidden * 4;
  Chain chain;
  chain.input_bytes = 4;  // of one token; so are all that flow
  const auto add = [&](int64_t resident, int64_t output_bytes, const PerDevice<double>& seconds) {
    ChainOp op;
    op.resident_bytes[kGpu] = resident;
    op.output_bytes = output_bytes;
    op.seconds = seconds;
    chain.ops.push_back(op);
  };
  add(Blocks(memory, {&w.embedding}) + memory.block_bytes(4 * Chunk(inputs)), x_bytes,
      times.Embedding());
  // Few layers differ from the one before.
  const LayerWeights* before = nullptr;
  for (const LayerWeights& l : w.layers) {
    if (before != nullptr && SameShapes(*before, l)) {
      for (int half = 0; half < 2; ++half) chain.ops.push_back(chain.ops[chain.ops.size() - 2]);
      continue;
    }
    add(Blocks(memory, {&l.attn_norm, &l.q, &l.k, &l.v, &l.q_bias, &l.k_bias, &l.v_bias, &l.q_norm,
                        &l.k_norm, &l.attn_output}) +
            cache,
        x_bytes, times.Attention(l));
    add(Blocks(memory, {&l.ffn_norm, &l.gate, &l.up, &l.down}), x_bytes, times.FeedForward(l));
    before = &l;
  }
  add(OutputBytes(inputs, memory), 4, times.Output());
  return chain;
}

std::function<double(DeviceKind, DeviceKind, int64_t)> CopyOf(const DecoderPlanInputs& inputs,
                                                              const DecoderMachine* machine) {
  if (machine == nullptr) return [](DeviceKind, DeviceKind, int64_t) { return 0.0; };
  return [machine, phases = Phases(inputs)](DeviceKind from, DeviceKind to, int64_t bytes) {
    double seconds = 0.0;
    for (const Phase& phase : phases) {
      seconds += phase.times * (machine->copy_seconds(from, to, bytes * phase.tokens) +
                                (to == kGpu ? machine->launch_seconds[to] : 0.0));
    }
    return seconds;
  };
}

}  // namespace tandem
