#include "model/decoder_plan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/split_cache.h"
#include "dispatch/split_costs.h"
#include "model/decoder_chain.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

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
// Caches go into two memories only for this much: what the devices take together is predicted less
// well.
constexpr double kSplitCacheMargin = 0.1;
// Numbers of layers for which it is found out how much of their caches fits.
constexpr int64_t kSplitCandidates = 16;

class Planner {
 public:
  Planner(const DecoderPlanInputs& inputs, const DecoderMachine* machine,
          const DecoderMemory& memory)
      : inputs_(inputs),
        machine_(machine),
        memory_(memory),
        chain_(ChainOf(inputs, machine, memory)),
        copy_(CopyOf(inputs, machine)),
        fixed_(FixedBytes(inputs, memory)) {
    // A tied matrix that is on the GPU twice is there once.
    if (inputs.weights.tied) shared_ = memory.block_bytes(ByteExtent(inputs.weights.output));
  }

  DecoderPlan Evaluate(const DecoderPlacement& placement) const {
    DecoderPlan plan;
    plan.placement = placement;
    plan.placement.gpu_cache_rows = inputs_.gpu_cache_rows;
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
    const int64_t rows = RowsThatFit(layers);
    if (rows == 0) return std::nullopt;
    DecoderPlan plan = WithRows(rows, nullptr).Evaluate(LastLayers(inputs_.config.layers, layers));
    plan.seconds = 0.0;
    plan.placement.reason =
        absl::StrCat(why, "; of ", CacheTokens(inputs_), " tokens of cache ", rows,
                     " per layer fit in ", Megabytes(memory_.gpu_bytes), " of GPU memory");
    return plan;
  }

  absl::StatusOr<DecoderPlan> Best() const {
    const int64_t all = inputs_.config.layers;
    const absl::StatusOr<ChainPlacement> found = Place();
    if (absl::IsUnimplemented(found.status())) {  // calls that were not measured
      DecoderPlan plan = Most();
      absl::StrAppend(&plan.placement.reason, " (", Message(found.status()), ")");
      return plan;
    }
    TANDEM_RETURN_IF_ERROR(found.status());
    DecoderPlan best = Evaluate(PlacementOf(found->devices));
    // What the chain cannot see: a tied matrix shared, and no activations where nothing is.
    const DecoderPlan gpu = Evaluate(DecoderPlacement::Everything(kGpu, all));
    const DecoderPlan cpu = Evaluate(DecoderPlacement::Everything(kCpu, all));
    const DecoderPlan& alone = Fits(gpu) && gpu.seconds <= cpu.seconds ? gpu : cpu;
    if (!Fits(best) || alone.seconds <= best.seconds * (1.0 + kSplitMargin)) best = alone;
    const double whole = best.seconds;
    if (const auto split =
            Fits(gpu) || !inputs_.split_caches ? std::nullopt : BestWithSplitCaches();
        split && split->seconds * (1.0 + kSplitCacheMargin) < best.seconds) {
      best = *split;
    }
    best.placement.reason = absl::StrCat(
        "predicted ", Rate(best.seconds), " tokens/s; ",
        best.placement.gpu_cache_rows ? absl::StrCat("with whole caches ", Rate(whole), ", ") : "",
        "all on cpu ", Rate(cpu.seconds), ", all on cuda ", Rate(gpu.seconds),
        Fits(gpu) ? ""
                  : absl::StrCat(", but that takes ", Megabytes(gpu.gpu_bytes), " of ",
                                 Megabytes(memory_.gpu_bytes)),
        found->optimal ? ""
                       : absl::StrFormat("; at most %.1f %% from the best",
                                         100.0 * (found->seconds / found->bound_seconds - 1.0)));
    return best;
  }

 private:
  // By the chain, with caches as the inputs have them.
  absl::StatusOr<ChainPlacement> Place() const {
    PlacementLimits limits;
    limits.bytes[kGpu] = std::max<int64_t>(memory_.gpu_bytes - fixed_, 0);
    return PlaceChain(chain_, copy_, limits);
  }

  // The same decoder, with only so many rows of its caches on the GPU.
  Planner WithRows(int64_t rows, const DecoderMachine* machine) const {
    DecoderPlanInputs inputs = inputs_;
    inputs.gpu_cache_rows = rows;
    return Planner(inputs, machine, memory_);
  }

  // Of the caches of the last `layers` layers, if all but the caches must fit too: whole steps, but
  // not everything; 0: none.
  int64_t RowsThatFit(int64_t layers) const {
    constexpr int64_t kStep = SplitKvCache::kRowStep;
    const Planner without = WithRows(0, nullptr);
    const int64_t bytes = without.Evaluate(LastLayers(inputs_.config.layers, layers)).gpu_bytes;
    int64_t low = 0, high = (CacheTokens(inputs_) - 1) / kStep;  // in steps; `low` fits, or none
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (bytes + layers * CacheBytes(inputs_, memory_, middle * kStep) <= memory_.gpu_bytes) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low * kStep;
  }

  // The fewer layers, the more of each one's cache: with each of several numbers the last ones, and
  // with the best share of the caches the best way through the chain.
  std::optional<DecoderPlan> BestWithSplitCaches() const {
    const int64_t all = inputs_.config.layers;
    std::optional<DecoderPlan> best;
    const auto consider = [&](DecoderPlan plan) {
      if (Fits(plan) && (!best || plan.seconds < best->seconds)) best = std::move(plan);
    };
    int64_t before = 0;
    for (int64_t i = 1; i <= kSplitCandidates; ++i) {
      const int64_t layers = all * i / kSplitCandidates, rows = RowsThatFit(layers);
      if (layers == before || rows == 0) continue;
      before = layers;
      consider(WithRows(rows, machine_).Evaluate(LastLayers(all, layers)));
    }
    if (!best) return best;
    const Planner planner = WithRows(*best->placement.gpu_cache_rows, machine_);
    if (const auto found = planner.Place(); found.ok()) {
      consider(planner.Evaluate(PlacementOf(found->devices)));
    }
    return best;
  }

  std::string Rate(double seconds) const {
    const double tokens = static_cast<double>(inputs_.job.prompt_tokens) +
                          static_cast<double>(inputs_.job.generated_tokens);
    return std::isinf(seconds) ? std::string("unknown") : absl::StrFormat("%.1f", tokens / seconds);
  }

  const DecoderPlanInputs inputs_;
  const DecoderMachine* machine_;
  const DecoderMemory& memory_;
  Chain chain_;
  std::function<double(DeviceKind, DeviceKind, int64_t)> copy_;
  int64_t fixed_ = 0;
  int64_t shared_ = 0;
};

}  // namespace

DecoderMachine DecoderMachine::Of(const CostModel& model, const CostCorrection* correction) {
  DecoderMachine machine;
  machine.call_seconds = CostsOf(model, correction).call;
  for (const DeviceKind device : kDeviceKinds) {
    machine.launch_seconds[device] = model.LaunchSeconds(device);
  }
  machine.copy_seconds = [&model](DeviceKind from, DeviceKind to, int64_t bytes) {
    return model.CopySeconds(from, to, bytes, /*pinned=*/true);
  };
  machine.shared_bytes_per_second = model.profile().shared_bytes_per_second;
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
  DecoderPlanInputs own = inputs;
  if (placement.gpu_cache_rows) own.gpu_cache_rows = placement.gpu_cache_rows;
  return Planner(own, machine, memory).Evaluate(placement);
}

}  // namespace tandem
