// How the keys of a decode attention call are split over blocks: a pure function of extents, never
// of lengths, so that a captured graph stays right while sequences grow. The splits are numbers of
// blocks only; which keys a split takes is found on the device from the actual lengths.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tandem::cuda {

inline constexpr int64_t kDecodeTile = 64;  // keys that a block takes at a time

struct DecodePlanInput {
  int64_t capacity = 0;         // keys that the cache of a sequence can hold
  int64_t sequences = 0;        // of the batch
  int64_t kv_heads = 0;         // each read by one group of blocks
  int64_t multiprocessors = 1;  // of the device
  int64_t blocks_per_multiprocessor = 1;
  bool batch_invariant = false;
};

struct DecodePlan {
  int64_t splits = 1;       // blocks per sequence and head
  int64_t fixed_tiles = 0;  // tiles of a split; 0: the tiles of a sequence are spread evenly
};

// A split of fewer tiles waits longer for its first one than it reads: 3 of 64 keys are what is
// under way anyway.
inline constexpr int64_t kDecodeStartTiles = 3;
// Tiles' worth of time that merging one more split takes.
inline constexpr double kDecodeMergeTiles = 0.02;
// Of the mode in which a sequence's result depends on nothing but itself.
inline constexpr int64_t kDecodeFixedTiles = 8;
// More splits than this are merged longer than they save.
inline constexpr int64_t kDecodeMaxSplits = 256;

inline DecodePlan PlanDecode(const DecodePlanInput& in) {
  const int64_t tiles = std::max<int64_t>((in.capacity + kDecodeTile - 1) / kDecodeTile, 1);
  if (in.batch_invariant) {
    return {(tiles + kDecodeFixedTiles - 1) / kDecodeFixedTiles, kDecodeFixedTiles};
  }
  const int64_t slots = std::max<int64_t>(in.multiprocessors * in.blocks_per_multiprocessor, 1);
  const int64_t base = std::max<int64_t>(in.sequences * in.kv_heads, 1);
  // The blocks run in waves of `slots`; a wave lasts as long as a block of it. Beyond two waves the
  // last one no longer matters much, beyond one tile per block nothing is left to split.
  const int64_t most = std::min({tiles, kDecodeMaxSplits, std::max<int64_t>(4 * slots / base, 1)});
  DecodePlan best;
  double best_cost = 0.0;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t waves = (base * splits + slots - 1) / slots;
    const int64_t chunk = (tiles + splits - 1) / splits;
    double cost = static_cast<double>(waves * (chunk + kDecodeStartTiles));
    if (splits > 1) cost += kDecodeMergeTiles * static_cast<double>(splits);
    if (splits == 1 || cost < best_cost) {
      best = {splits, 0};
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace tandem::cuda
