// GGUF's reference quantisers by their definition (core/ops/cast.h), on host memory.
#pragma once

#include <cstddef>
#include <vector>

#include "core/tensor_view.h"

namespace tandem::reference {

// The bytes of x [R, N] f32 in a block format, row by row. x must be finite.
std::vector<std::byte> QuantizedBytes(const TensorView& x, DType format);

// The same for one block of a format of 256 elements.
void AppendSuperBlock(std::vector<std::byte>& bytes, const std::vector<float>& x, DType format);

}  // namespace tandem::reference
