// Choosing a device for every part of a decoder (decoder_placement.h), before it is loaded: from
// what the machine's measured times predict and what GPU memory there is.
//
// The parts are a chain: embedding, attention and feed-forward network of each layer, output
// matrix; x flows along it, weights and caches stay. dispatch/placement.h finds the fastest way
// through it that fits. A part's time is that of its calls:
//   generation   one token, behind the prompt; without one while the cache fills from nothing
//   prompt       `ubatch` tokens at once
// each as often as the options say, at three lengths on the way. GPU calls queue up behind each
// other: all but the launch overhead counts for each, and that once per crossing to the GPU, with
// the copy.
//
// Memory is counted before anything is allocated, in blocks as the allocator makes them: weights,
// caches, activations and workspace of one session. Where not everything fits, fewer layers with
// all of their caches on the GPU are weighed against more layers whose caches are there with their
// first tokens only, as many as fit, and with the others in host memory, both devices attending
// (decoder_chain.h). Without measured times there is no telling what is faster: then as many layers
// as fit go to the GPU, from the last one on, and caches are cut only where so many layers were
// asked for or not even one fits.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "absl/status/statusor.h"
#include "dispatch/cost_model.h"
#include "dispatch/placement.h"
#include "dispatch/scheduler.h"
#include "model/config.h"
#include "model/decoder_placement.h"
#include "model/session_options.h"
#include "model/weights.h"

namespace tandem {

// What tokens/s shall be best for.
struct DecodingJob {
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 1;
};

// What is known of the machine.
struct DecoderMachine {
  // Of one call whose operands are there; nullopt: unknown.
  std::function<std::optional<double>(const OpFacts& facts, DeviceKind device)> call_seconds;
  // The part of it that calls which queue up behind each other take only once.
  PerDevice<double> launch_seconds;
  std::function<double(DeviceKind from, DeviceKind to, int64_t bytes)> copy_seconds;
  double shared_bytes_per_second = 0.0;  // of CostProfile

  // As measured, times `correction` for what calls took lately (nullptr: none); both must outlive
  // it.
  static DecoderMachine Of(const CostModel& model, const CostCorrection* correction = nullptr);
};
struct DecoderMemory {
  int64_t gpu_bytes = 0;        // that there are
  int64_t workspace_bytes = 0;  // that kernels want
  // That an allocation of so many takes.
  std::function<int64_t(int64_t bytes)> block_bytes = [](int64_t bytes) { return bytes; };
};
struct DecoderPlanInputs {
  const DecoderConfig& config;
  const DecoderWeights& weights;
  SessionOptions session = {};
  DecodingJob job = {};
  // The last ones, on the GPU, and with them the output matrix; all: everything. Not given: chosen.
  std::optional<int64_t> gpu_layers = {};
  // Of each cache, only so many tokens on the GPU (DecoderPlacement::gpu_cache_rows). Not given:
  // all, or chosen.
  std::optional<int64_t> gpu_cache_rows = {};
  // May caches be cut that would fit as a whole, with fewer layers?
  bool split_caches = true;
  // Are matrices of this type packed on the CPU?
  std::function<bool(DType type)> packed = [](DType) { return false; };
};

struct DecoderPlan {
  DecoderPlacement placement;
  int64_t gpu_bytes = 0;  // of blocks
  double seconds = 0.0;   // of the job, predicted; 0: unknown
};
// `machine` may be null: nothing is known of it.
absl::StatusOr<DecoderPlan> PlanDecoder(const DecoderPlanInputs& inputs,
                                        const DecoderMachine* machine, const DecoderMemory& memory);
// A given placement: what it takes. Infinite seconds: not known.
DecoderPlan EvaluateDecoder(const DecoderPlanInputs& inputs, const DecoderMachine* machine,
                            const DecoderMemory& memory, const DecoderPlacement& placement);

}  // namespace tandem
