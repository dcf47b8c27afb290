// Packing and unpacking strided operands in host memory, for copies to and from a device.
#pragma once

#include "core/tensor_view.h"

namespace tandem {

// The dense layout of a view's elements, at the view's address; dimensions of stride 0 take no
// room.
TensorView Dense(const TensorView& view);

// The view without its repetitions: dimensions of stride 0 have extent 1.
TensorView Once(TensorView view);

// Copies the elements of `from` to `to`, views of one shape (rank >= 1) and plain dtype in host
// memory, whole rows at once where they are contiguous in both.
void CopyElements(const TensorView& to, const TensorView& from);

}  // namespace tandem
