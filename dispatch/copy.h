// Moving tensors between devices by hand: weights to where they will be used, results to where they
// are read.
#pragma once

#include "absl/status/statusor.h"
#include "core/tensor.h"
#include "dispatch/context.h"

namespace tandem {

// Copies the elements of `from` to `to`, either of which may live on any device of the context; if
// one of them is on a GPU, in the order of its stream: host memory that is written holds the
// elements after Synchronize. InvalidArgument: other dtypes or shapes, not contiguous, a device
// that the context does not have.
absl::Status Copy(Context& context, const TensorView& from, const TensorView& to);

// A contiguous tensor of this dtype and shape on a device of the context, uninitialised.
absl::StatusOr<Tensor> AllocateOn(Context& context, DeviceKind device, DType dtype,
                                  const Shape& shape);
// A copy of a contiguous tensor on that device.
absl::StatusOr<Tensor> CopyTo(Context& context, DeviceKind device, const TensorView& from);

// Waits until the device's stream is done.
absl::Status Synchronize(Context& context, DeviceKind device);

}  // namespace tandem
