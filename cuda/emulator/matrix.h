// Warp-level matrix instructions (mma.sync, ldmatrix, stmatrix): what a lane deposits and what is
// done when the warp is complete. Fragment layouts after the PTX ISA, "warp-level matrix
// instructions".
#pragma once

#include <cstdint>

#include "cuda/emulator/thread.h"

namespace tandem::cuda::emulator {

// m16n8k16 of 16-bit floats, f32 accumulators. Of group = lane / 4 and pair = lane % 4 * 2:
//   a[0] (group, pair..), a[1] (group + 8, pair..), a[2] (group, pair + 8..), a[3] both + 8
//   b[0] (k = pair.., n = group), b[1] (k = pair + 8..)
//   d[0..1] (group, pair..), d[2..3] (group + 8, pair..)
// The sum of the products is rounded once to f32 here; tensor cores keep fewer bits of it.
struct FloatProductLane {
  const uint32_t* a;
  const uint32_t* b;
  float* d;
  bool bf16;
};
void MultiplyFloat(void* const* lanes, uint32_t mask);

// m16n8k32 of 8-bit integers, exact. As above with quad = lane % 4 * 4:
//   a[0] (group, quad..), a[1] (group + 8, quad..), a[2] (group, quad + 16..), a[3] both
//   b[0] (k = quad.., n = group), b[1] (k = quad + 16..)
struct IntegerProductLane {
  const uint32_t* a;
  const uint32_t* b;
  int32_t* d;
};
void MultiplyInteger(void* const* lanes, uint32_t mask);

// ldmatrix and stmatrix of `count` (1, 2, 4) 8x8 matrices of 16-bit elements: lane 8 j + r names
// row r of matrix j; register j of a lane holds elements (lane / 4, lane % 4 * 2 ..) of matrix j,
// or of its transpose.
struct MatrixLane {
  void* row;
  uint32_t* registers;
  int count;
  bool transposed;
};
void LoadMatrices(void* const* lanes, uint32_t mask);
void StoreMatrices(void* const* lanes, uint32_t mask);
// Checks a lane's row, and counts bank conflicts when the warp is complete. Collective.
void MoveMatrices(bool load, MatrixLane* lane, Site site);

}  // namespace tandem::cuda::emulator
