// TensorView: what kernels see. A plain struct that owns nothing: pointer, dtype, shape, strides,
// device.
//
// Strides count elements, may be 0 (broadcast, inputs only) or larger than the extents need
// (padding, slices); negative strides are rejected. For block-quantised types the last dimension is
// contiguous, its extent and every other stride are multiples of the block length.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace tandem {

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device;
  Shape shape;
  std::array<int64_t, kMaxRank> strides{};  // elements

  // An optional argument that was not given has rank 0 and no data.
  bool present() const { return shape.rank != 0; }
  int rank() const { return shape.rank; }
  // Extent of dimension i; negative i counts from the last.
  int64_t dim(int i) const { return shape.dims[i < 0 ? i + shape.rank : i]; }
  int64_t stride(int i) const { return strides[i < 0 ? i + shape.rank : i]; }
  int64_t num_elements() const { return NumElements(shape).value_or(0); }
  bool empty() const { return num_elements() == 0; }

  // Typed base pointer; T must match dtype (F16, BF16, float, BlockQ8_0, ...).
  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
  // Address of the element `offset` elements from the base (plain types only).
  template <typename T>
  T* At(int64_t offset) const {
    return static_cast<T*>(data) + offset;
  }
};

// A row-major view of `data`. Works for block types when the last extent is whole blocks.
TensorView MakeView(void* data, DType dtype, const Shape& shape, Device device = {});
// Same for read-only memory (mapped weights): kernels never write to inputs.
TensorView MakeView(const void* data, DType dtype, const Shape& shape, Device device = {});

// Row-major strides of a shape.
std::array<int64_t, kMaxRank> ContiguousStrides(const Shape& shape);
// True when the elements are laid out row-major without gaps (dimensions of extent 1 do not
// matter).
bool IsContiguous(const TensorView& view);

// Byte offset of `elements` elements (whole blocks for block types).
int64_t ByteOffset(DType dtype, int64_t elements);
// Bytes from the first to one past the last addressed element; 0 if empty. The view must be valid.
int64_t ByteExtent(const TensorView& view);
// Do the address ranges of two views intersect? Conservative: interleaved views count as
// overlapping.
bool Overlaps(const TensorView& a, const TensorView& b);
// The very same elements: pointer, dtype, shape and strides agree (in-place operation).
bool SameElements(const TensorView& a, const TensorView& b);

// Views of part of a view. Preconditions (not checked): axis < rank, 0 <= begin <= begin + length
// <= dim.
TensorView Slice(const TensorView& view, int axis, int64_t begin, int64_t length);
TensorView Transpose(const TensorView& view, int axis_a, int axis_b);
// Drops dimension `axis` at `index`.
TensorView Select(const TensorView& view, int axis, int64_t index);
// Splits dimension `axis` into [outer, inner] with outer * inner = dim(axis). Always possible on
// strides.
TensorView SplitDim(const TensorView& view, int axis, int64_t outer, int64_t inner);

// "f16 [1, 8, 1, 64]"
std::string ToString(const TensorView& view);

// Checks a view's own consistency: rank <= kMaxRank, known dtype, extents >= 0, strides >= 0, no
// 64-bit overflow of the addressed range, data non-null and aligned unless empty. The error names
// `name`.
absl::Status ValidateView(std::string_view name, const TensorView& view);
// ValidateView, and rank == `rank`.
absl::Status ValidateView(std::string_view name, const TensorView& view, int rank);
// ValidateView for something that will be written: in addition no two indices may share an address.
absl::Status ValidateOutput(std::string_view name, const TensorView& view, int rank);
// "out overlaps a" unless they do not intersect.
absl::Status CheckNoOverlap(std::string_view out_name, const TensorView& out,
                            std::string_view in_name, const TensorView& in);
// As above, but operating in place (SameElements) is allowed.
absl::Status CheckInPlaceOrDisjoint(std::string_view out_name, const TensorView& out,
                                    std::string_view in_name, const TensorView& in);
// "k dimension 3 (head_dim): expected 64, got 32"
absl::Status CheckDim(std::string_view name, const TensorView& view, int axis,
                      std::string_view meaning, int64_t expected);
// dtype in {f32, f16, bf16}
absl::Status CheckFloat(std::string_view name, const TensorView& view);
absl::Status CheckDType(std::string_view name, const TensorView& view, DType expected);
absl::Status CheckSameDevice(std::string_view name, const TensorView& view,
                             std::string_view reference_name, const TensorView& reference);

}  // namespace tandem
