// Element access to tensor views in f64, for the references: any dtype, any strides, host memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/tensor_view.h"

namespace tandem::reference {

// Calls fn(index) with the element offset (in elements, by the view's strides) of every element, in
// row-major order of the indices.
void ForEachOffset(const TensorView& view, const std::function<void(int64_t offset)>& fn);

// The element `offset` elements from the base; block formats are dequantised.
double ReadAt(const TensorView& view, int64_t offset);

// All elements in row-major order. An absent view gives none.
std::vector<double> ReadAll(const TensorView& view);

// Writes element i (row-major) = value(i), rounded once. Block formats: per block, by the largest
// magnitude (an encoding of the values; not necessarily the bytes of the cast op).
void WriteAll(const TensorView& view, const std::function<double(int64_t i)>& value);

// `value` rounded to a float dtype and back.
double RoundTo(DType dtype, double value);
// Half the distance of neighbouring values of a float dtype around `value`: the error of one
// rounding.
double HalfUlp(DType dtype, double value);
// Of two dtypes the one that stores fewer bits of a number. Block formats are the coarsest.
DType Coarser(DType a, DType b);

}  // namespace tandem::reference
