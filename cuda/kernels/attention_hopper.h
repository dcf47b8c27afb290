// Attention of many queries on compute capability 9.0, the kernel `hopper`; see
// core/ops/attention.h.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/attention_params.h"
#include "cuda/runtime/tensor_map.h"

namespace tandem::cuda {

// Tiles by head dimension (64, 128 or 256). Accumulators of a consumer thread: keys / 2 scores,
// head_dim / 2 outputs, keys / 4 words of probabilities.
struct HopperTile {
  int consumers;           // warpgroups of 64 queries each
  int keys;                // of a tile of K or V
  int consumer_registers;  // setmaxnreg; together with the producer's at most 512 per lane
  int producer_registers;

  constexpr int rows() const { return 64 * consumers; }
  constexpr int threads() const { return 128 * (consumers + 1); }
};
constexpr HopperTile HopperTileOf(int head_dim, bool variants) {
  return {2, head_dim <= 128 ? 128 : variants ? 64 : 80, 240, 24};
}

inline constexpr int kHopperStages = 2;  // of the rings of K and of V

struct HopperParams {
  AttentionParams attention;
  // [D, keys, kv heads, planes], planes being sequences or pages; boxes of 64 x `piece`.
  TensorMap k, v;
  int32_t piece;       // rows of a tile that one copy fetches
  int32_t k_steps[2];  // kv head, plane: 0 if broadcast, else 1
  int32_t v_steps[2];
  // Tiles of queries: (head of a sequence) x (row block), see TileOf.
  uint32_t tiles, blocks;   // blocks: per head; of a packed batch those of all sequences
  uint32_t heads, section;  // of all sequences; those that are worked on at the same time
  bool out_pairs;           // two neighbouring outputs can be stored as one word
};

// Of a row of a tile of queries: what would take registers that are needed only now and then.
struct HopperRow {
  int32_t first, last;  // it sees the keys first <= j < last
  int32_t position;     // among the keys
  float q_factor;       // by which its products are to be multiplied
};
// Of a tile of queries: where its outputs lie, and which tiles of keys it needs (HopperWork).
struct HopperPlace {
  int64_t q_batch, head, row;  // row: the first
  int32_t rows;                // queries
  int32_t rows_kept;           // rows that get an output
  int32_t begin, whole_begin, whole_end;
};

// What a block keeps in shared memory; Carver is SharedCarver or SharedBytes. Tiles of 16-bit
// elements: columns in blocks of 64, each [rows][64], swizzled by 128 bytes.
struct HopperShared {
  uint16_t* q;         // [consumers][64 rows]
  uint16_t* k;         // [stages][keys]
  uint16_t* v;         // [stages][keys]
  HopperRow* rows;     // [consumers][64 rows]
  HopperPlace* place;  // [consumers]: each has its own, for they do not wait for each other
  uint64_t* barriers;  // kHopperBarriers
  uint32_t* missing;   // [stages]: bit i: piece i of the tile of keys lies nowhere
  uint32_t* suspects;  // [2]: the last tile with a non-finite value
};
inline constexpr int kHopperBarriers = 4 * kHopperStages;

template <typename Carver>
TANDEM_HOST_DEVICE inline HopperShared CarveHopper(Carver& carver, int head_dim, bool variants) {
  const HopperTile tile = HopperTileOf(head_dim, variants);
  HopperShared shared;
  shared.q = carver.template Take<uint16_t>(tile.rows() * head_dim, 1024);
  shared.k = carver.template Take<uint16_t>(kHopperStages * tile.keys * head_dim, 1024);
  shared.v = carver.template Take<uint16_t>(kHopperStages * tile.keys * head_dim, 1024);
  shared.rows = carver.template Take<HopperRow>(tile.rows());
  shared.place = carver.template Take<HopperPlace>(tile.consumers);
  shared.barriers = carver.template Take<uint64_t>(kHopperBarriers);
  shared.missing = carver.template Take<uint32_t>(kHopperStages);
  shared.suspects = carver.template Take<uint32_t>(2);
  return shared;
}

// One block per multiprocessor, HopperTileOf(head_dim).threads() threads. `dtype`: of k and v.
// `variants`: soft cap, ALiBi or a scale that is not positive.
TANDEM_KERNEL_FUNCTION(AttentionHopper64Function, DType dtype, bool variants)
TANDEM_KERNEL_FUNCTION(AttentionHopper128Function, DType dtype, bool variants)
TANDEM_KERNEL_FUNCTION(AttentionHopper256Function, DType dtype, bool variants)

}  // namespace tandem::cuda
