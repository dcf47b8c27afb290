// The attention kernels of the CPU, as list entries. Each file implements one algorithm for the
// three instruction sets.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "cpu/stream.h"

namespace tandem::cpu {

// Unimplemented unless the last dimension of every tensor is contiguous, which the SIMD kernels
// need.
absl::Status CheckContiguousRows(const AttentionArgs& args);

// Kernels that multiply pairs of bf16 by dot products, and may keep weights in bf16 too: q and all
// keys must be bf16, and the processor must have the instruction. The quick answer without words
// looks at the types only.
bool AppliesBf16Pairs(const AttentionArgs& args);
absl::Status CheckBf16Pairs(const KernelContext& context, const AttentionArgs& args);

// Plain loops, any layout (attention_reference.cc).
Kernel<AttentionArgs> AttentionReference();

// Bounds of the decode kernel: its rows, scores and accumulators of a tile are sized for these.
inline constexpr int64_t kMaxDecodeQueries = 16;
inline constexpr int64_t kMaxDecodeRows = 128;  // q_heads / kv_heads * queries

// Few query rows: streams the cache once, split into chunks (attention_decode.cc).
Kernel<AttentionArgs> AttentionDecode(Isa isa);

// The same through bf16 dot products, where q, k and v are bf16 and the processor has them.
Kernel<AttentionArgs> AttentionDecodeBf16Dot();

// The same through integer dot products, where the cache is i8 and the processor has AVX512_VNNI.
Kernel<AttentionArgs> AttentionDecodeInt8Dot();

// Many query rows: tiles of queries x keys as small matrix products (attention_prefill.cc).
Kernel<AttentionArgs> AttentionPrefill(Isa isa);

// The same through bf16 dot products, where q, k and v are bf16 and the processor has them.
Kernel<AttentionArgs> AttentionPrefillBf16Dot();

// The same through products of bf16 tiles, where the processor has AMX too.
Kernel<AttentionArgs> AttentionPrefillAmx();

}  // namespace tandem::cpu
