// GGUF's formats of 256 elements, for the references: read in f64, and written by the simplest
// encoding.
#pragma once

#include <vector>

#include "core/dtype.h"

namespace tandem::reference {

// Element i of the block at `data`. Requires a dtype of 256-element blocks.
double ReadSuperBlock(DType dtype, const void* data, int i);

// Encodes 256 values: scales by the extremes of each sub-block, values to the nearest. Not the
// bytes of the cast op.
void WriteSuperBlock(DType dtype, const std::vector<double>& values, void* data);

}  // namespace tandem::reference
