// TensorView -> DeviceTensor, on the host.
#pragma once

#include "core/tensor_view.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

inline DeviceTensor ToDeviceTensor(const TensorView& view) {
  DeviceTensor tensor;
  tensor.data = view.data;
  for (int i = 0; i < view.rank() && i < 4; ++i) {
    tensor.dims[i] = view.dim(i);
    tensor.strides[i] = view.stride(i);
  }
  return tensor;
}

}  // namespace tandem::cuda
