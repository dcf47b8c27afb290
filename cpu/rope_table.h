// Cosines and sines of every (position, pair) of one call, in its workspace. Filled and used by
// rope_rows-inl.h.
#pragma once

#include <cstdint>

#include "core/ops/rope.h"
#include "core/workspace.h"
#include "cpu/strided.h"

namespace tandem::cpu {

struct RopeTable {
  int64_t rows = 0;     // positions: S, or B * S
  int64_t columns = 0;  // pairs, or 2 * pairs when interleaved
  int64_t padded_pairs = 0;
  float* cosines = nullptr;  // [rows, columns]
  float* sines = nullptr;    // [rows, columns]
  double* exact = nullptr;   // [workers, 2, padded_pairs]
};

inline RopeTable TakeRopeTable(Workspace& workspace, const RopeRotation& rotation, int workers) {
  constexpr int64_t kMaxDoubles = 8;  // of the widest vector
  RopeTable table;
  const int64_t pairs = rotation.inv_freq.dim(0);
  table.rows = NumRows(rotation.positions) * rotation.positions.dim(-1);
  table.columns = rotation.pairing == RopePairing::kHalf ? pairs : 2 * pairs;
  table.padded_pairs = (pairs + kMaxDoubles - 1) / kMaxDoubles * kMaxDoubles;
  table.cosines = workspace.Take<float>(table.rows * table.columns);
  table.sines = workspace.Take<float>(table.rows * table.columns);
  table.exact = workspace.Take<double>(workers * 2 * table.padded_pairs);
  return table;
}

// Position of row `row` of the table.
inline double RopePosition(const RopeRotation& rotation, int64_t row) {
  const TensorView& positions = rotation.positions;
  const int64_t tokens = positions.dim(-1);
  const int64_t sequence = positions.rank() == 2 ? row / tokens * positions.stride(0) : 0;
  return *positions.At<int32_t>(sequence + row % tokens * positions.stride(-1));
}

}  // namespace tandem::cpu
