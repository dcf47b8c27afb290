// Attention of many queries on tensor cores, for every GPU from sm_80 on: the kernels `prefill`.
// See attention_prefill_kernel.h for how they work.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/attention_params.h"

namespace tandem::cuda {

inline constexpr int kPrefillWarps = 4;
inline constexpr int kPrefillThreads = 32 * kPrefillWarps;
inline constexpr int kPrefillStages = 2;  // tiles of keys in shared memory

struct AttentionPrefillParams {
  AttentionParams a;
  // Rows begin on 16 bytes, elements lie side by side, and there is nothing to convert: tiles are
  // copied by cp.async. Else element by element, through registers.
  bool copy_k, copy_v, copy_k_new, copy_v_new, copy_q;
  bool vector_q, vector_k, vector_v, vector_out;  // the same but for the type
  bool variants;                                  // of the scores
  int32_t group;                                  // query heads per key/value head
  Divisor kv_heads;
  Divisor sequences;
  int64_t tiles;  // row tiles of one sequence and key/value head; packed: of all, at most
};

// How a kernel for head sizes up to kDim cuts its work: each of kPrefillWarps warps has row_tiles
// times 16 rows, and tiles of `keys` keys come through shared memory. A query, or a weight, is the
// sum of `terms` 16-bit numbers. The reasoning is in docs/results/cuda_attention.md.
struct PrefillShape {
  int dim, row_tiles, keys, terms;
  constexpr int rows() const { return 16 * row_tiles * kPrefillWarps; }
};
constexpr PrefillShape PrefillShapeOf(int dim, bool variants) {
  const bool wide = dim <= 128 && !variants;
  return {dim, wide ? 2 : 1, dim > 128 ? 32 : dim > 64 && wide ? 48 : 64, 1};
}
// Of int8 keys, kept as they are beside their scales.
constexpr PrefillShape PrefillI8ShapeOf(int dim) { return {dim, 1, dim > 128 ? 32 : 64, 2}; }
inline constexpr int kPrefillDims[] = {64, 128, 256};

// What a row of a block sees, and where it lies.
struct alignas(16) PrefillRow {
  int32_t begin, end;  // keys; empty for rows that are none
  int32_t query;       // -1: none
  int32_t head;        // of the queries
};

// What all threads of a block work on. In shared memory, where it costs no registers beside the
// accumulators.
struct PrefillBlock {
  int64_t batch;    // sequence
  int64_t q_batch;  // where its queries lie in q, out and lse
  int64_t q_begin;  // row of the first of them
  int64_t q_len, kv_head;
  int64_t position;  // of its first query among the keys
  int32_t cache_len;
  int32_t begin, end;  // keys that any row sees
};
struct PrefillRange {
  int32_t begin, end;          // keys that any row of a warp sees; begin > end if there are none
  int32_t all_begin, all_end;  // keys that all its rows see
};

// What a block keeps in shared memory; Carver is SharedCarver or SharedBytes. Tiles are of 16-bit
// elements, in chunks of 8 that are swizzled (PrefillChunk).
struct PrefillShared {
  // q [terms][rows][dim], then the ring of tiles [kPrefillStages][K, V][keys][dim]; when they are
  // done with, the result: f32 [rows][dim].
  uint16_t* memory;
  PrefillBlock* block;
  PrefillRange* ranges;  // of each warp
  PrefillRow* rows;      // [rows]
  float* q_factor;       // [rows]: the row in q is the query's divided by it
  uint8_t* there;        // [kPrefillStages][keys], of a paged cache: the page table has the key
  float* scales;         // [kPrefillStages][K, V][keys], of int8 keys; 0 for keys that are none
};
template <typename Carver>
TANDEM_HOST_DEVICE inline PrefillShared CarvePrefill(Carver& carver, const PrefillShape& shape) {
  PrefillShared shared;
  const int64_t q = int64_t{shape.terms} * shape.rows() * shape.dim;
  const int64_t tiles = int64_t{2 * kPrefillStages} * shape.keys * shape.dim;
  shared.memory = carver.template Take<uint16_t>(q + (tiles > q ? tiles : q), 128);
  shared.block = carver.template Take<PrefillBlock>(1);
  shared.ranges = carver.template Take<PrefillRange>(kPrefillWarps);
  shared.rows = carver.template Take<PrefillRow>(shape.rows());
  shared.q_factor = carver.template Take<float>(shape.rows());
  shared.there = carver.template Take<uint8_t>(kPrefillStages * shape.keys);
  shared.scales =
      shape.terms > 1 ? carver.template Take<float>(2 * kPrefillStages * shape.keys) : nullptr;
  return shared;
}

// One block of kPrefillThreads per row tile and key/value head; `type` is f16 or bf16. The head
// sizes of q and v are at most that in the name.
TANDEM_KERNEL_FUNCTION(AttentionPrefill64Function, DType type, bool variants)
TANDEM_KERNEL_FUNCTION(AttentionPrefill128Function, DType type, bool variants)
TANDEM_KERNEL_FUNCTION(AttentionPrefill256Function, DType type, bool variants)
// int8 keys with queries of f32, every variant: `prefill_i8`.
TANDEM_KERNEL_FUNCTION(AttentionPrefillI8Function, int dim)

}  // namespace tandem::cuda
