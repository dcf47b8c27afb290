#include "cuda/runtime/tensor_map.h"

#include <string>

#include "core/status.h"

namespace tandem::cuda {

absl::Status Validate(const TensorMapSpec& spec) {
  switch (spec.dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kI8:
    case DType::kI32:
      break;
    default:
      return InvalidArgument("tensor map: dtype ", std::string(Name(spec.dtype)),
                             ", expected f32, f16, bf16, i8 or i32");
  }
  if (spec.data == nullptr || reinterpret_cast<uintptr_t>(spec.data) % 16 != 0) {
    return InvalidArgument("tensor map: data, expected an address aligned to 16 bytes");
  }
  if (spec.rank < 1 || spec.rank > 5) {
    return InvalidArgument("tensor map: rank ", spec.rank, ", expected 1..5");
  }
  for (size_t i = 0; i < static_cast<size_t>(spec.rank); ++i) {
    if (spec.extent[i] < 1 || spec.extent[i] > int64_t{1} << 32) {
      return InvalidArgument("tensor map: extent[", i, "] = ", spec.extent[i],
                             ", expected 1..2^32");
    }
    if (spec.box[i] < 1 || spec.box[i] > 256) {
      return InvalidArgument("tensor map: box[", i, "] = ", spec.box[i], ", expected 1..256");
    }
    if (i > 0 &&
        (spec.stride[i] <= 0 || spec.stride[i] % 16 != 0 || spec.stride[i] >= int64_t{1} << 40)) {
      return InvalidArgument("tensor map: stride[", i, "] = ", spec.stride[i],
                             ", expected a positive multiple of 16 below 2^40");
    }
  }
  const int64_t row = int64_t{spec.box[0]} * BlockBytes(spec.dtype);
  if (row % 16 != 0) {
    return InvalidArgument("tensor map: box[0] = ", spec.box[0], " is ", row,
                           " bytes, expected a multiple of 16");
  }
  if (spec.swizzle != Swizzle::kNone && row > SwizzleBytes(spec.swizzle)) {
    return InvalidArgument("tensor map: box[0] = ", spec.box[0], " is ", row,
                           " bytes, expected at most the ", SwizzleBytes(spec.swizzle),
                           " of its swizzle");
  }
  return absl::OkStatus();
}

}  // namespace tandem::cuda
