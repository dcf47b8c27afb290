// The attention kernels of the CPU, as list entries. Each file implements one algorithm for the
// three instruction sets.
#pragma once

#include "absl/status/status.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "cpu/stream.h"

namespace tandem::cpu {

// Plain loops, any layout (attention_reference.cc).
Kernel<AttentionArgs> AttentionReference();

// Few query rows: streams the cache once, split into chunks (attention_decode.cc).
Kernel<AttentionArgs> AttentionDecode(Isa isa);

// Many query rows: tiles of queries x keys as small matrix products (attention_prefill.cc).
Kernel<AttentionArgs> AttentionPrefill(Isa isa);

}  // namespace tandem::cpu
