// Matrix-vector product and its neighbours (M <= 8) with block-quantised weights in stored form, by
// integer dot products: what the driver (matmul_gemv_int8_simd.cc) hands to the inner loops, which
// are compiled once per instruction set (matmul_gemv_int8_<isa>.cc).
//
// Activations are rounded to 8 bits per 32 elements of K (quantize_activations-inl.h) and laid out
// in *units*, in the order in which the inner loops read them; a unit holds the same elements of
// all activation rows, one row after the other. A *quad* is four blocks of 32 elements of one row:
//   first[64] i8, second[64] i8  the first halves of the four blocks, and the second halves
//   scale[16] f32                each block's scale four times: the 16 integer sums of four
//                                products that 64 bytes give are four per block
// q8_0, q4_0: a unit is 128 elements. One quad (blocks 0 1 2 3), then
//   start[16] i32                what the 16 sums begin with: minus the weights' offset times the
//                                sum of the activations that the lane multiplies
// The others: a unit is a super-block of 256 elements. Two quads, then correction[16] f32:
//   q4_k, q5_k  quads 0 2 4 6 and 1 3 5 7; eight zeros, then each block's - scale * sum
//   q6_k        quads 0 1 4 5 and 2 3 6 7; - 32 * scale * sum of each half block
//   tq2_0       quads 0 1 4 5 and 2 3 6 7; eight zeros, then each block's - scale * sum
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tandem::cpu {

inline constexpr int64_t kQuadBytes = 64 + 64 + 64;
// Bytes of a unit per activation row.
inline constexpr int64_t kSimpleUnitBytes = kQuadBytes + 64;
inline constexpr int64_t kSuperUnitBytes = 2 * kQuadBytes + 64;

inline bool IsSuperBlock(DType dtype) { return BlockLength(dtype) == 256; }
inline int64_t UnitLength(DType dtype) { return IsSuperBlock(dtype) ? 256 : 128; }
inline int64_t UnitBytes(DType dtype) {
  return IsSuperBlock(dtype) ? kSuperUnitBytes : kSimpleUnitBytes;
}

struct Int8StripArgs {
  const uint8_t* b;      // the first weight row
  int64_t row_bytes;     // from a weight row to the next
  int64_t columns;       // weight rows
  int64_t blocks;        // of a weight row, in its own format
  const uint8_t* units;  // activations
  float* tile;           // tile[m * tile_stride + n] = the sum
  int64_t tile_stride;
};
using Int8Strip = void (*)(const Int8StripArgs& args);

// The inner loop for a block format and 1, 2, 4 or 8 activation rows.
Int8Strip Int8StripAvx512Vnni(DType dtype, int64_t rows);
Int8Strip Int8StripAvxVnni(DType dtype, int64_t rows);
Int8Strip Int8StripAvx2(DType dtype, int64_t rows);
Int8Strip Int8StripScalar(DType dtype, int64_t rows);

}  // namespace tandem::cpu
