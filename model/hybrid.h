// The placement of a decoder on this machine: what there is of it, for decoder_plan.h.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "dispatch/context.h"
#include "model/decoder_plan.h"

namespace tandem {

struct HybridOptions {
  // This many layers, the last ones, on the GPU, and with them the output matrix; with all layers
  // everything. Not given: chosen.
  std::optional<int64_t> gpu_layers;
  // Most bytes of GPU memory; 0: what is free, less a twentieth.
  int64_t gpu_memory_limit = 0;
  // Of the session that is to fit.
  SessionOptions session;
  DecodingJob job;
};

// FailedPrecondition: no GPU in the context. InvalidArgument: a device is forced, bad numbers.
// ResourceExhausted: so many layers do not fit; the message says what they take. `pack_in_place`,
// `pack_floats`: which matrices the CPU multiplies packed.
absl::StatusOr<DecoderPlacement> PlaceDecoder(Context& context, const DecoderConfig& config,
                                              const DecoderWeights& weights,
                                              const HybridOptions& options, bool pack_in_place,
                                              bool pack_floats);

}  // namespace tandem
