// TensorView -> DeviceTensor, on the host.
#pragma once

#include "core/tensor_view.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda {

// Dimension i of the view is dimension i of the result.
inline DeviceTensor ToDeviceTensor(const TensorView& view) {
  DeviceTensor tensor;
  if (!view.present()) return tensor;
  tensor.data = view.data;
  tensor.dtype = view.dtype;
  for (int i = 0; i < view.rank() && i < 4; ++i) {
    tensor.dims[i] = view.dim(i);
    tensor.strides[i] = view.stride(i);
  }
  return tensor;
}

// The last dimension of the view is dimension 3 of the result (see RowOffset).
inline DeviceTensor ToDeviceRows(const TensorView& view) {
  DeviceTensor tensor;
  if (!view.present()) return tensor;
  tensor.data = view.data;
  tensor.dtype = view.dtype;
  for (int i = 0; i < view.rank() && i < 4; ++i) {
    tensor.dims[4 - view.rank() + i] = view.dim(i);
    tensor.strides[4 - view.rank() + i] = view.stride(i);
  }
  return tensor;
}

// As ToDeviceTensor, with stride 0 in every dimension of extent 1: it is broadcast.
inline DeviceTensor ToBroadcastTensor(const TensorView& view) {
  DeviceTensor tensor = ToDeviceTensor(view);
  for (int i = 0; i < 4; ++i) {
    if (tensor.dims[i] == 1) tensor.strides[i] = 0;
  }
  return tensor;
}

}  // namespace tandem::cuda
