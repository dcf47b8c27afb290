#include "model/decoder_plan.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/buffer.h"
#include "core/status.h"
#include "dispatch/facts.h"
#include "dispatch/split_cache.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

int64_t Tokens(const DecoderConfig& config, const SessionOptions& session) {
  return session.CapacityFor(config.context);
}
int64_t Chunk(const DecoderConfig& config, const SessionOptions& session) {
  return std::min(session.ubatch, Tokens(config, session));
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
  std::vector<OpFacts> Attention(const LayerWeights& w) const {
    std::vector<OpFacts> calls = {Norm(c_.hidden), Product(w.k), Product(w.v), Product(w.q)};
    for (const TensorView* norm : {&w.k_norm, &w.q_norm}) {
      const int64_t heads = norm == &w.k_norm ? c_.kv_heads : c_.heads;
      if (norm->present()) calls.push_back(Norm(heads * c_.head_dim));
    }
    const auto cache = [&](int64_t rows, int64_t dim) {
      return Shaped(inputs_.session.kv_dtype, {1, c_.kv_heads, rows, dim}, device_);
    };
    const auto heads = [&](int64_t count, int64_t dim) {
      return Shaped(DType::kF32, {1, count, m_, dim}, device_);
    };
    KvAppendArgs append;
    append.k = heads(c_.kv_heads, c_.head_dim);
    append.v = heads(c_.kv_heads, c_.v_head_dim);
    append.q = append.q_out = heads(c_.heads, c_.head_dim);
    append.k_cache = cache(kv_len_, c_.head_dim);
    append.v_cache = cache(kv_len_, c_.v_head_dim);
    calls.push_back(Here(FactsOf(append)));
    AttentionArgs attention;
    attention.q = append.q;
    attention.k = append.k_cache;
    attention.v = append.v_cache;
    if (inputs_.session.kv_dtype == DType::kI8) {
      attention.k_scale = attention.v_scale =
          Shaped(DType::kF32, {1, c_.kv_heads, kv_len_}, device_);
    }
    attention.out = heads(c_.heads, c_.v_head_dim);
    calls.push_back(Here(FactsOf(attention)));
    calls.push_back(Product(w.attn_output));
    return calls;
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
std::vector<Phase> Phases(const DecoderPlanInputs& inputs) {
  const int64_t tokens = Tokens(inputs.config, inputs.session);
  const int64_t chunk = Chunk(inputs.config, inputs.session);
  const int64_t prompt = std::min(inputs.job.prompt_tokens, tokens);
  const int64_t generated = inputs.job.generated_tokens;
  // Where the middle one of the tokens stands; without a prompt, in the middle of the cache.
  const int64_t middle = prompt == 0 ? tokens / 2 : std::min(prompt + generated / 2, tokens);
  std::vector<Phase> phases;
  if (generated > 0) {
    phases.push_back({static_cast<double>(generated), 1, std::max<int64_t>(middle, 1)});
  }
  if (prompt > 0) {
    const int64_t m = std::min(chunk, prompt);
    phases.push_back({static_cast<double>(inputs.job.prompt_tokens) / static_cast<double>(m), m,
                      std::max(m, prompt / 2)});
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

int64_t CacheBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory) {
  const DecoderConfig& c = inputs.config;
  const int64_t tokens = Tokens(c, inputs.session);
  const int64_t rows = c.kv_heads * std::min(tokens, inputs.gpu_cache_rows.value_or(tokens));
  int64_t total = 0;
  if (rows == 0) return 0;
  for (const int64_t dim : {c.head_dim, c.v_head_dim}) {
    total += memory.block_bytes(Bytes(inputs.session.kv_dtype, {rows, dim}));
    if (inputs.session.kv_dtype == DType::kI8) total += memory.block_bytes(rows * 4);
  }
  return total;
}

// What a session and a model have on a GPU whichever parts are there.
int64_t FixedBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory) {
  const DecoderConfig& c = inputs.config;
  const int64_t rows = Chunk(c, inputs.session);
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
  const std::vector<Phase> phases = Phases(inputs);
  Chain chain;
  chain.input_bytes = 4;  // of one token; so are all that flow
  const auto add = [&](int64_t resident, int64_t output_bytes, const auto& calls_of) {
    ChainOp op;
    op.resident_bytes[kGpu] = resident;
    op.output_bytes = output_bytes;
    for (const DeviceKind device : kDeviceKinds) {
      if (machine == nullptr) continue;
      for (const Phase& phase : phases) {
        const Calls calls(inputs, phase.tokens, phase.kv_len, device);
        op.seconds[device] += phase.times * Seconds(*machine, calls_of(calls), device);
      }
    }
    chain.ops.push_back(op);
  };
  const int64_t x_bytes = c.hidden * 4, cache = CacheBytes(inputs, memory);
  add(Blocks(memory, {&w.embedding}) + memory.block_bytes(4 * Chunk(c, inputs.session)), x_bytes,
      [](const Calls& calls) { return calls.Embedding(); });
  for (const LayerWeights& l : w.layers) {
    add(Blocks(memory, {&l.attn_norm, &l.q, &l.k, &l.v, &l.q_bias, &l.k_bias, &l.v_bias, &l.q_norm,
                        &l.k_norm, &l.attn_output}) +
            cache,
        x_bytes, [&](const Calls& calls) { return calls.Attention(l); });
    add(Blocks(memory, {&l.ffn_norm, &l.gate, &l.up, &l.down}), x_bytes,
        [&](const Calls& calls) { return calls.FeedForward(l); });
  }
  add(Blocks(memory, {&w.output_norm, &w.output}) + memory.block_bytes(c.vocabulary * 4), 4,
      [](const Calls& calls) { return calls.Output(); });
  return chain;
}

// Cost of a copy of so many bytes per token, over the whole job.
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

DecoderPlacement PlacementOf(const std::vector<DeviceKind>& devices) {
  DecoderPlacement placement;
  placement.embedding = devices.front();
  placement.output = devices.back();
  for (size_t i = 1; i + 1 < devices.size(); i += 2) {
    placement.layers.push_back({devices[i], devices[i + 1]});
  }
  return placement;
}

std::vector<DeviceKind> DevicesOf(const DecoderPlacement& placement) {
  std::vector<DeviceKind> devices = {placement.embedding};
  for (const LayerDevices& layer : placement.layers) {
    devices.push_back(layer.attention);
    devices.push_back(layer.feed_forward);
  }
  devices.push_back(placement.output);
  return devices;
}

DecoderPlacement LastLayers(int64_t layers, int64_t on_gpu) {
  if (on_gpu == layers) return DecoderPlacement::Everything(kGpu, layers);
  DecoderPlacement placement = DecoderPlacement::Everything(kCpu, layers);
  for (int64_t i = layers - on_gpu; i < layers; ++i) {
    placement.layers[static_cast<size_t>(i)] = {kGpu, kGpu};
  }
  if (on_gpu > 0) placement.output = kGpu;
  return placement;
}

std::string Megabytes(int64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

// A model goes on two devices only for a predicted gain of more than this: predictions of single
// calls are off by about as much.
constexpr double kSplitMargin = 0.03;

class Planner {
 public:
  Planner(const DecoderPlanInputs& inputs, const DecoderMachine* machine,
          const DecoderMemory& memory)
      : inputs_(inputs),
        memory_(memory),
        chain_(ChainOf(inputs, machine, memory)),
        copy_(CopyOf(inputs, machine)),
        fixed_(FixedBytes(inputs, memory)) {
    // A tied matrix that is on the GPU twice is there once.
    if (inputs.weights.tied) shared_ = Blocks(memory, {&inputs.weights.output});
  }

  DecoderPlan Evaluate(const DecoderPlacement& placement) const {
    DecoderPlan plan;
    plan.placement = placement;
    const auto evaluated = EvaluatePlacement(chain_, copy_, DevicesOf(placement));
    plan.seconds = evaluated.ok() ? evaluated->seconds : kNever;
    if (!evaluated.ok() || !placement.uses(kGpu)) return plan;
    plan.gpu_bytes = evaluated->resident_bytes[kGpu] + fixed_;
    if (placement.embedding == kGpu && placement.output == kGpu) plan.gpu_bytes -= shared_;
    return plan;
  }
  bool Fits(const DecoderPlan& plan) const { return plan.gpu_bytes <= memory_.gpu_bytes; }

  absl::StatusOr<DecoderPlan> Exactly(int64_t layers) const {
    const int64_t all = inputs_.config.layers;
    if (layers < 0 || layers > all) {
      return InvalidArgument("gpu_layers: expected 0..", all, ", got ", layers);
    }
    DecoderPlan plan = Evaluate(LastLayers(all, layers));
    if (!Fits(plan)) {
      if (std::optional<DecoderPlan> split = WithSplitCaches(layers, "asked for")) return *split;
      int64_t most = layers - 1;
      while (most > 0 && !Fits(Evaluate(LastLayers(all, most)))) --most;
      return absl::ResourceExhaustedError(
          absl::StrCat("gpu_layers: ", layers, " layers take ", Megabytes(plan.gpu_bytes),
                       " of GPU memory with their caches and activations, expected at most ",
                       Megabytes(memory_.gpu_bytes), ": ",
                       most == 0 ? "not one fits" : absl::StrCat(most, " fit")));
    }
    plan.placement.reason = "asked for";
    return plan;
  }

  // As many layers as fit.
  DecoderPlan Most() const {
    const int64_t all = inputs_.config.layers;
    for (int64_t layers = all; layers > 0; --layers) {
      DecoderPlan plan = Evaluate(LastLayers(all, layers));
      if (!Fits(plan)) {  // the output matrix may be the largest of all
        plan.placement.embedding = plan.placement.output = kCpu;
        plan = Evaluate(plan.placement);
      }
      if (!Fits(plan)) continue;
      plan.placement.reason =
          absl::StrCat("no measured times of this machine's devices: as many layers as fit in ",
                       Megabytes(memory_.gpu_bytes), ", the last ones");
      return plan;
    }
    if (std::optional<DecoderPlan> split =
            WithSplitCaches(1, "not one layer fits with all of its cache")) {
      return *split;
    }
    DecoderPlan plan = Evaluate(DecoderPlacement::Everything(kCpu, all));
    plan.placement.reason = absl::StrCat("not one layer fits in ", Megabytes(memory_.gpu_bytes));
    return plan;
  }

  // So many layers, with as much of their caches as fits. nullopt: not even so.
  std::optional<DecoderPlan> WithSplitCaches(int64_t layers, const std::string& why) const {
    constexpr int64_t kStep = SplitKvCache::kRowStep;
    const DecoderPlacement placement = LastLayers(inputs_.config.layers, layers);
    const int64_t tokens = Tokens(inputs_.config, inputs_.session);
    const auto plan_of = [&](int64_t rows) {
      DecoderPlanInputs inputs = inputs_;
      inputs.gpu_cache_rows = rows;
      DecoderPlan plan = Planner(inputs, nullptr, memory_).Evaluate(placement);
      plan.placement.gpu_cache_rows = rows;
      plan.seconds = 0.0;
      return plan;
    };
    int64_t low = 0, high = (tokens - 1) / kStep;  // in steps; `low` fits, or nothing does
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (Fits(plan_of(middle * kStep))) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    if (low == 0) return std::nullopt;
    DecoderPlan plan = plan_of(low * kStep);
    plan.placement.reason =
        absl::StrCat(why, "; of ", tokens, " tokens of cache ", low * kStep, " per layer fit in ",
                     Megabytes(memory_.gpu_bytes), " of GPU memory");
    return plan;
  }

  absl::StatusOr<DecoderPlan> Best() const {
    const int64_t all = inputs_.config.layers;
    PlacementLimits limits;
    limits.bytes[kGpu] = std::max<int64_t>(memory_.gpu_bytes - fixed_, 0);
    const absl::StatusOr<ChainPlacement> placed = PlaceChain(chain_, copy_, limits);
    if (absl::IsUnimplemented(placed.status())) {  // calls that were not measured
      DecoderPlan plan = Most();
      absl::StrAppend(&plan.placement.reason, " (", Message(placed.status()), ")");
      return plan;
    }
    TANDEM_RETURN_IF_ERROR(placed.status());
    const ChainPlacement& found = *placed;
    DecoderPlan best = Evaluate(PlacementOf(found.devices));
    // What the chain cannot see: a tied matrix shared, and no activations where nothing is.
    const DecoderPlan gpu = Evaluate(DecoderPlacement::Everything(kGpu, all));
    const DecoderPlan cpu = Evaluate(DecoderPlacement::Everything(kCpu, all));
    const DecoderPlan& alone = Fits(gpu) && gpu.seconds <= cpu.seconds ? gpu : cpu;
    if (!Fits(best) || alone.seconds <= best.seconds * (1.0 + kSplitMargin)) best = alone;
    const auto rate = [&](const DecoderPlan& plan) {
      const double tokens = static_cast<double>(inputs_.job.prompt_tokens) +
                            static_cast<double>(inputs_.job.generated_tokens);
      return std::isinf(plan.seconds) ? std::string("unknown")
                                      : absl::StrFormat("%.1f", tokens / plan.seconds);
    };
    best.placement.reason = absl::StrCat(
        "predicted ", rate(best), " tokens/s; all on cpu ", rate(cpu), ", all on cuda ", rate(gpu),
        Fits(gpu) ? ""
                  : absl::StrCat(", but that takes ", Megabytes(gpu.gpu_bytes), " of ",
                                 Megabytes(memory_.gpu_bytes)),
        found.optimal ? ""
                      : absl::StrFormat("; at most %.1f %% from the best",
                                        100.0 * (found.seconds / found.bound_seconds - 1.0)));
    return best;
  }

 private:
  const DecoderPlanInputs& inputs_;
  const DecoderMemory& memory_;
  Chain chain_;
  std::function<double(DeviceKind, DeviceKind, int64_t)> copy_;
  int64_t fixed_ = 0;
  int64_t shared_ = 0;
};

}  // namespace

DecoderMachine DecoderMachine::Of(const CostModel& model) {
  DecoderMachine machine;
  machine.call_seconds = [&model](const OpFacts& facts, DeviceKind device) {
    return model.CallSeconds(facts, device);
  };
  for (const DeviceKind device : kDeviceKinds) {
    machine.launch_seconds[device] = model.LaunchSeconds(device);
  }
  machine.copy_seconds = [&model](DeviceKind from, DeviceKind to, int64_t bytes) {
    return model.CopySeconds(from, to, bytes, /*pinned=*/true);
  };
  return machine;
}

absl::StatusOr<DecoderPlan> PlanDecoder(const DecoderPlanInputs& inputs,
                                        const DecoderMachine* machine,
                                        const DecoderMemory& memory) {
  const DecodingJob& job = inputs.job;
  if (job.prompt_tokens < 0 || job.generated_tokens < 0 ||
      (job.prompt_tokens == 0 && job.generated_tokens == 0)) {
    return InvalidArgument("job: expected tokens >= 0, and some, got ", job.prompt_tokens, " and ",
                           job.generated_tokens);
  }
  const Planner planner(inputs, machine, memory);
  if (inputs.gpu_layers) return planner.Exactly(*inputs.gpu_layers);
  return machine == nullptr ? planner.Most() : planner.Best();
}

DecoderPlan EvaluateDecoder(const DecoderPlanInputs& inputs, const DecoderMachine* machine,
                            const DecoderMemory& memory, const DecoderPlacement& placement) {
  return Planner(inputs, machine, memory).Evaluate(placement);
}

}  // namespace tandem
