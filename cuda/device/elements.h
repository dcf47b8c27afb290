// Elements of tensors whose type is only known at run time: what the generic kernels use, one
// instantiation for every type. The branch on the type is the same for all threads.
#pragma once

#include "core/block_elements.h"
#include "cuda/device/target.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Element at `offset` elements from the base, of a float type or i8.
__device__ inline float LoadNumber(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kF16:
      return ToFloat(static_cast<const F16*>(data)[offset]);
    case DType::kBF16:
      return ToFloat(static_cast<const BF16*>(data)[offset]);
    case DType::kI8:
      return static_cast<float>(static_cast<const int8_t*>(data)[offset]);
    default:
      return static_cast<const float*>(data)[offset];
  }
}
__device__ inline float LoadNumber(const DeviceTensor& tensor, int64_t offset) {
  return LoadNumber(tensor.data, tensor.dtype, offset);
}

// The same of block types too: more code, and more registers.
__device__ inline float LoadElement(const void* data, DType dtype, int64_t offset) {
  switch (dtype) {
    case DType::kF16:
      return ToFloat(static_cast<const F16*>(data)[offset]);
    case DType::kBF16:
      return ToFloat(static_cast<const BF16*>(data)[offset]);
    case DType::kI8:
      return static_cast<float>(static_cast<const int8_t*>(data)[offset]);
    case DType::kQ8_0:
      return BlockElement(static_cast<const BlockQ8_0*>(data)[offset / 32],
                          static_cast<int>(offset % 32));
    case DType::kQ4_0:
      return BlockElement(static_cast<const BlockQ4_0*>(data)[offset / 32],
                          static_cast<int>(offset % 32));
    case DType::kQ4_K:
      return BlockElement(static_cast<const BlockQ4_K*>(data)[offset / 256],
                          static_cast<int>(offset % 256));
    case DType::kQ5_K:
      return BlockElement(static_cast<const BlockQ5_K*>(data)[offset / 256],
                          static_cast<int>(offset % 256));
    case DType::kQ6_K:
      return BlockElement(static_cast<const BlockQ6_K*>(data)[offset / 256],
                          static_cast<int>(offset % 256));
    case DType::kTQ2_0:
      return BlockElement(static_cast<const BlockTQ2_0*>(data)[offset / 256],
                          static_cast<int>(offset % 256));
    default:
      return static_cast<const float*>(data)[offset];
  }
}
__device__ inline float LoadElement(const DeviceTensor& tensor, int64_t offset) {
  return LoadElement(tensor.data, tensor.dtype, offset);
}

// Of a float type only: a few instructions.
__device__ inline float LoadFloatElement(const DeviceTensor& tensor, int64_t offset) {
  switch (tensor.dtype) {
    case DType::kF16:
      return ToFloat(tensor.As<const F16>()[offset]);
    case DType::kBF16:
      return ToFloat(tensor.As<const BF16>()[offset]);
    default:
      return tensor.As<const float>()[offset];
  }
}

// Stores a float as f32, f16 or bf16, rounded to nearest even.
__device__ inline void StoreElement(const DeviceTensor& tensor, int64_t offset, float value) {
  switch (tensor.dtype) {
    case DType::kF16:
      tensor.As<F16>()[offset] = ToF16(value);
      return;
    case DType::kBF16:
      tensor.As<BF16>()[offset] = ToBF16(value);
      return;
    default:
      tensor.As<float>()[offset] = value;
  }
}

// What a store of `value` leaves to be loaded.
__device__ inline float RoundTo(DType dtype, float value) {
  if (dtype == DType::kF16) return ToFloat(ToF16(value));
  if (dtype == DType::kBF16) return ToFloat(ToBF16(value));
  return value;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
