// Tensor maps: what a bulk tensor copy (cuda/device/bulk_copy.h) knows of the tensor it copies from
// or to. Encoded by the driver, or by the emulated runtime; kernels take them as __grid_constant__
// parameters, inside their parameter struct.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "core/dtype.h"

namespace tandem::cuda {

// Bytes within which 16-byte chunks of shared memory are permuted, so that both rows and columns of
// a tile are read without bank conflicts: chunk c of row r lies at chunk c ^ (r % 8) (128 bytes per
// row; 64 and 32: r / 2 % 4, r / 4 % 2).
enum class Swizzle : uint8_t { kNone, k32, k64, k128 };

constexpr int SwizzleBytes(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 0 : 16 << static_cast<int>(swizzle);
}

// A tensor in device memory and the box that one copy moves; dimension 0 is contiguous.
struct TensorMapSpec {
  const void* data = nullptr;          // 16-byte aligned
  DType dtype = DType::kF32;           // f32, f16, bf16, i8 (bytes) or i32
  int rank = 0;                        // 1..5
  std::array<int64_t, 5> extent = {};  // elements, 1..2^32
  std::array<int64_t, 5> stride = {};  // bytes, multiples of 16 below 2^40; [0] is not looked at
  std::array<int32_t, 5> box = {};  // elements, 1..256; box[0] is a multiple of 16 bytes, at most
                                    // the swizzle's bytes if there is one
  Swizzle swizzle = Swizzle::kNone;
};

struct alignas(64) TensorMap {
  std::array<std::byte, 128> opaque;
};

// InvalidArgument that names the field and what it should be.
absl::Status Validate(const TensorMapSpec& spec);

}  // namespace tandem::cuda
