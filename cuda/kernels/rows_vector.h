// Vector forms of the ops that reduce a row (core/ops/softmax.h, core/ops/rms_norm.h,
// core/ops/argmax.h): rows begin on 16 bytes.
#pragma once

#include "cuda/kernel_function.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

// Rows are whole chunks of 8 elements. A row is held in the registers of a warp, or of a block of
// kVectorThreads or kMaxRowThreads threads: at most kMaxRowChunks chunks each.
inline constexpr int kMaxRowChunks = 4;
inline constexpr int kMaxRowThreads = 512;
inline constexpr int64_t kMaxRegisterRow =
    int64_t{kMaxRowChunks} * kMaxRowThreads * kVectorElements;

// Where row r of a tensor of rank up to 4 begins; dimension 3 is the row.
struct RowIndexer {
  Divisor middle, inner;  // extents of dimensions 1 and 2

  TANDEM_HOST_DEVICE int64_t Offset(const DeviceTensor& t, int64_t row) const {
    const Divisor::Result a = inner.Divide(row), b = middle.Divide(a.quotient);
    return b.quotient * t.strides[0] + b.remainder * t.strides[1] + a.remainder * t.strides[2];
  }
};

struct RmsNormVectorParams {
  DeviceTensor x, weight, out, residual, sum;  // rows as in RowIndexer; weight: [columns]
  RowIndexer rows_of;
  int64_t rows;
  int columns;
  int row_threads;  // 32, kVectorThreads or kMaxRowThreads; those of a block otherwise
  float eps;
};
struct SoftmaxVectorParams {
  DeviceTensor x, out;  // [rows, columns]
  int64_t rows, columns;
  int row_threads;
  float scale;
};
// Each row in `splits` pieces of piece_columns (a multiple of 8), the last with what is left.
struct ArgMaxSplitParams {
  DeviceTensor x, out;  // [rows, columns], [rows]
  int64_t rows, columns;
  int64_t piece_columns;
  int splits;
  uint64_t* keys;  // [rows, splits], of the largest element of each piece
};

// `chunks`: per thread, 1, 2 or 4. `add`: there is a residual.
TANDEM_KERNEL_FUNCTION(RmsNormRegistersFunction, int chunks, bool add)
TANDEM_KERNEL_FUNCTION(SoftmaxRegistersFunction, int chunks)
// Rows of any length: one block of kVectorThreads per row.
TANDEM_KERNEL_FUNCTION(SoftmaxOnlineFunction)
// One block per piece; then one warp per row.
TANDEM_KERNEL_FUNCTION(ArgMaxPiecesFunction)
TANDEM_KERNEL_FUNCTION(ArgMaxMergeFunction)

}  // namespace tandem::cuda
