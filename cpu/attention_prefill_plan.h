// How prefill attention (attention_prefill.cc) is cut into tasks, and its scratch memory. Nothing
// here depends on the instruction set or on the number of threads, but for the size of the scratch.
//
// The query rows of one key/value head and sequence are numbered query-major (row = query * group +
// head within the group) and cut into row tiles of up to 192 rows. A task is one row tile of one
// key/value head, over the keys that its rows see. Three refinements, all functions of the
// arguments:
//   * The tiles with the most keys come first, so that no long one is left over at the end.
//   * Few tasks and many keys: the keys of a tile are cut into pieces, whose partial results are
//     merged afterwards (core/ops/online_softmax.h). Without it, a batch of one with one key/value
//     head would leave most of a large machine idle.
//   * The keys of a short sequence are packed once, before; several row tiles use them. Beyond
//     kSharedHeadBytes every task packs the keys that it comes to: reading panels from the
//     third-level cache costs more than packing, which is then 2 to 3 % of the work.
// The last two, and the size of row tiles, depend on the whole batch: batch-invariant calls go
// without, with small tiles.
// Capacities come from shapes alone; the tile list itself from the lengths of the sequences.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/ops/attention.h"
#include "core/workspace.h"

namespace tandem::cpu {

inline constexpr int64_t kPrefillKeyTile = 128;  // keys per tile
inline constexpr int64_t kPrefillPanel = 64;     // columns of a packed panel

// How a kernel multiplies, and in which blocks (attention_prefill_tile-inl.h).
enum class PrefillProducts : uint8_t {
  kFloat,  // f32 multiply-adds
  kPairs,  // bf16 dot products
  kTiles,  // bf16 tiles (attention_prefill_amx-inl.h)
};
inline constexpr int64_t kPrefillRowBlock = 6;  // rows of the register block
// The same of any kernel: of tiles, two by two.
constexpr int64_t PrefillBlockRows(PrefillProducts how) {
  return how == PrefillProducts::kTiles ? 32 : kPrefillRowBlock;
}

// Panels of one head that are packed ahead: a second-level cache of 1 MB. With 2 MB (2048
// keys, D = 128) the kernel ran at 0.74 of sgemm instead of 0.87 (Zen 5).
inline constexpr int64_t kSharedHeadBytes = int64_t{1} << 20;
inline constexpr int64_t kSharedBytes = int64_t{16} << 20;  // and all of them

constexpr int64_t RoundUpTo(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

struct PrefillTile {
  int64_t sequence;
  int64_t first;      // number of its first row
  int64_t rows;       // at most plan.tile_rows
  int64_t key_begin;  // no row sees a key outside [key_begin, key_end)
  int64_t key_end;
  int64_t slot;    // of its partial result, times kv_heads; pieces of one tile follow each other
  int64_t pieces;  // of this tile's keys; 1: not cut
  int64_t piece;
};

// The keys of a sequence, or those of a row tile, in tiles that do not straddle the border between
// cache and new keys.
struct KeyTiles {
  int64_t begin;
  int64_t border;  // within [begin, end]
  int64_t end;

  KeyTiles(int64_t key_begin, int64_t key_end, int64_t cache_len)
      : begin(key_begin),
        border(std::clamp(cache_len, key_begin, std::max(key_begin, key_end))),
        end(std::max(key_begin, key_end)) {}

  static int64_t Tiles(int64_t keys) { return (keys + kPrefillKeyTile - 1) / kPrefillKeyTile; }
  int64_t count() const { return Tiles(border - begin) + Tiles(end - border); }
  // Number of the tile that holds `key`.
  int64_t Find(int64_t key) const {
    return key < border ? (key - begin) / kPrefillKeyTile
                        : Tiles(border - begin) + (key - border) / kPrefillKeyTile;
  }
  KeyRange Keys(int64_t tile) const {
    const int64_t cached = Tiles(border - begin);
    if (tile < cached) {
      const int64_t first = begin + tile * kPrefillKeyTile;
      return {first, std::min(first + kPrefillKeyTile, border)};
    }
    const int64_t first = border + (tile - cached) * kPrefillKeyTile;
    return {first, std::min(first + kPrefillKeyTile, end)};
  }
};

// Keys packed ahead: one tile of them, of every key/value head.
struct PackedTile {
  int64_t sequence;
  KeyRange keys;
};

// Scratch of one worker.
struct PrefillScratch {
  float* q;              // [tile_rows][q_stride]
  float* scores;         // [tile_rows][kPrefillKeyTile]
  float* acc;            // [tile_rows][acc_stride]
  float* k;              // [kPrefillKeyTile / kPrefillPanel][k_depth][kPrefillPanel]
  float* v;              // [acc_stride / kPrefillPanel][v_depth][kPrefillPanel]
  float* sum;            // [tile_rows][16] partial sums
  float* max;            // [tile_rows]
  float* next_max;       // [tile_rows]
  float* factor;         // [tile_rows]
  KeyRange* visible;     // [tile_rows]    keys that the row sees, but for mask and bias
  int32_t* begin;        // [tile_rows]    the same within the current tile of keys
  int32_t* end;          // [tile_rows]
  uint32_t* bits;        // [tile_rows][kPrefillKeyTile / 32], if there is a mask or a bias
  int32_t* block_begin;  // [tile_rows / kPrefillRowBlock] keys that any of its rows sees
  int32_t* block_end;
  bool* started;  // [tile_rows / kPrefillRowBlock] its part of acc holds something
};

struct PrefillPlan {
  int64_t group;
  int64_t kv_heads;
  int64_t tile_rows;   // a multiple of 6, 16 and 32: all sorts of blocks
  int64_t k_depth;     // rows of a panel of K: D, or as many pairs, or those of whole tiles
  int64_t v_depth;     // rows of a panel of V: kPrefillKeyTile, or as many pairs
  int64_t q_stride;    // floats
  int64_t acc_stride;  // floats, whole panels
  int64_t max_tiles;
  int64_t max_pieces;
  int64_t max_head_packed;  // most tiles of one sequence that are packed ahead
  int64_t max_packed;       // capacity of `packed`

  int64_t tile_count;
  int64_t packed_count;
  PrefillTile* tiles;
  PackedTile* packed;
  int64_t* first_packed;   // [B] index into packed of the sequence's first tile; -1: not ahead
  float* packed_k;         // [packed][kv_heads], each as PrefillScratch::k
  float* packed_v;         // [packed][kv_heads], each as PrefillScratch::v
  bool* packed_finite;     // [packed][kv_heads]
  float* partial_acc;      // [slot][tile_rows][acc_stride]
  float* partial_max;      // [slot][tile_rows]
  float* partial_sum;      // [slot][tile_rows]
  PrefillScratch scratch;  // of worker 0; the others follow

  // The sequence's first tile in `packed`, or -1.
  int64_t FirstPacked(int64_t sequence) const {
    return max_packed > 0 ? first_packed[sequence] : -1;
  }
  int64_t k_floats() const { return kPrefillKeyTile * k_depth; }
  int64_t v_floats() const { return v_depth * acc_stride; }
};

// Everything that follows from the shapes, and the memory.
PrefillPlan MakePrefillPlan(const AttentionArgs& args, PrefillProducts how, int64_t workers,
                            Workspace& workspace);

// Fills the lists from the lengths of the sequences. Needs the memory.
void PlanTiles(const AttentionArgs& args, PrefillPlan& plan);

// Keys that some query of the sequence sees lie within this range.
KeyRange VisibleExtent(const MaskRule& rule, int64_t first_query, int64_t last_query);

PrefillScratch OfWorker(const PrefillPlan& plan, int worker);

}  // namespace tandem::cpu
