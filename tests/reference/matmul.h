// Matrix product by its definition (core/ops/matmul.h), on host memory.
#pragma once

#include <vector>

#include "core/ops/matmul.h"

namespace tandem::reference {

struct MatMulResult {
  std::vector<double> out;  // [Z, M, N] row-major
  // sum_k |a| |b| * |alpha| + |bias| + |beta * addend|: what the rounding of any order of summation
  // is relative to.
  std::vector<double> magnitude;
};

// In f64 throughout: the oracle.
MatMulResult MatMul(const MatMulArgs& args);

// The straightforward implementation at the storage precision of a and b: both are stored in the
// coarser dtype of the two, sums are f32 in order of k, the result is stored in out's dtype. A
// block-quantised b is dequantised to f32, a stays as it is.
MatMulResult NaiveMatMul(const MatMulArgs& args);

// What rounding the activations to 8 bits (docs/numerics.md) may add to the error of each output,
// before its own rounding: in a block of 32 elements of K whose largest magnitude is c, an
// activation is off by up to c / 254. Never more than the sum of those errors, and at most eight
// standard deviations if they are independent and spread evenly.
std::vector<double> ActivationRounding(const MatMulArgs& args);

}  // namespace tandem::reference
