// A decoder as a chain of parts for dispatch/placement.h: what each part takes on each device, and
// the memory it needs there. Pure: shapes and measured times in, numbers out.
//
// A part on the GPU of which only the first rows of the cache are there (gpu_cache_rows) is what
// CacheAttention and SplitKvCache make of it (dispatch/split_costs.h): new tokens go to the memory
// that their rows are in, both devices attend, and the host waits for the GPU twice per layer.
#pragma once

#include <cstdint>
#include <functional>

#include "dispatch/placement.h"
#include "model/decoder_plan.h"

namespace tandem {

// Capacity of the caches.
int64_t CacheTokens(const DecoderPlanInputs& inputs);
// Block bytes on the GPU of one layer's cache, `rows` of it.
int64_t CacheBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory, int64_t rows);
// Of the output matrix.
int64_t OutputBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory);
// What a session and a model have on a GPU whichever parts are there.
int64_t FixedBytes(const DecoderPlanInputs& inputs, const DecoderMemory& memory);

// Embedding, attention and feed-forward network of each layer, output matrix. `machine` may be
// null: then nothing takes time.
Chain ChainOf(const DecoderPlanInputs& inputs, const DecoderMachine* machine,
              const DecoderMemory& memory);
// Cost of a copy of so many bytes per token, over the whole job.
std::function<double(DeviceKind, DeviceKind, int64_t)> CopyOf(const DecoderPlanInputs& inputs,
                                                              const DecoderMachine* machine);

}  // namespace tandem
