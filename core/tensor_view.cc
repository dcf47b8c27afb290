#include "core/tensor_view.h"

#include <algorithm>

#include "core/status.h"

namespace tandem {
namespace {

// absl::StrCat takes Abseil's own string_view in some builds.
std::string Str(std::string_view text) { return std::string(text); }

// Index of the last addressed element, or nullopt on overflow. The view's extents are >= 0, not
// empty.
std::optional<int64_t> LastElement(const TensorView& view) {
  int64_t last = 0;
  for (int i = 0; i < view.rank(); ++i) {
    const auto step = CheckedMul(view.shape.dims[i] - 1, view.strides[i]);
    if (!step) return std::nullopt;
    const auto sum = CheckedAdd(last, *step);
    if (!sum) return std::nullopt;
    last = *sum;
  }
  return last;
}

}  // namespace

TensorView MakeView(void* data, DType dtype, const Shape& shape, Device device) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.device = device;
  view.shape = shape;
  view.strides = ContiguousStrides(shape);
  return view;
}

TensorView MakeView(const void* data, DType dtype, const Shape& shape, Device device) {
  return MakeView(const_cast<void*>(data), dtype, shape, device);
}

std::array<int64_t, kMaxRank> ContiguousStrides(const Shape& shape) {
  std::array<int64_t, kMaxRank> strides{};
  uint64_t stride = 1;  // unsigned: an overflowing shape is reported by ValidateView, not here
  for (int i = std::min(shape.rank, kMaxRank) - 1; i >= 0; --i) {
    strides[i] = static_cast<int64_t>(stride);
    stride *= static_cast<uint64_t>(std::max<int64_t>(shape.dims[i], 1));
  }
  return strides;
}

bool IsContiguous(const TensorView& view) {
  int64_t expected = 1;
  for (int i = view.rank() - 1; i >= 0; --i) {
    if (view.shape.dims[i] == 0) return true;
    if (view.shape.dims[i] == 1) continue;
    if (view.strides[i] != expected) return false;
    expected *= view.shape.dims[i];
  }
  return true;
}

int64_t ByteOffset(DType dtype, int64_t elements) {
  return elements / BlockLength(dtype) * BlockBytes(dtype);
}

int64_t ByteExtent(const TensorView& view) {
  if (view.empty()) return 0;
  const int64_t last = LastElement(view).value_or(0);
  return ByteOffset(view.dtype, last) + BlockBytes(view.dtype);
}

bool Overlaps(const TensorView& a, const TensorView& b) {
  if (a.device != b.device) return false;
  const int64_t a_bytes = ByteExtent(a);
  const int64_t b_bytes = ByteExtent(b);
  if (a_bytes == 0 || b_bytes == 0) return false;
  const auto a_begin = reinterpret_cast<uintptr_t>(a.data);
  const auto b_begin = reinterpret_cast<uintptr_t>(b.data);
  return a_begin < b_begin + static_cast<uintptr_t>(b_bytes) &&
         b_begin < a_begin + static_cast<uintptr_t>(a_bytes);
}

bool SameElements(const TensorView& a, const TensorView& b) {
  if (a.data != b.data || a.dtype != b.dtype || a.device != b.device || !(a.shape == b.shape)) {
    return false;
  }
  for (int i = 0; i < a.rank(); ++i) {
    if (a.shape.dims[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

TensorView Slice(const TensorView& view, int axis, int64_t begin, int64_t length) {
  TensorView part = view;
  // An empty slice may begin one past the end: keep the base pointer inside the allocation.
  if (length > 0 && view.data != nullptr) {
    part.data = static_cast<char*>(view.data) + ByteOffset(view.dtype, begin * view.strides[axis]);
  }
  part.shape.dims[axis] = length;
  return part;
}

TensorView Transpose(const TensorView& view, int axis_a, int axis_b) {
  TensorView result = view;
  std::swap(result.shape.dims[axis_a], result.shape.dims[axis_b]);
  std::swap(result.strides[axis_a], result.strides[axis_b]);
  return result;
}

TensorView Select(const TensorView& view, int axis, int64_t index) {
  TensorView result = Slice(view, axis, index, 1);
  for (int i = axis; i + 1 < view.rank(); ++i) {
    result.shape.dims[i] = result.shape.dims[i + 1];
    result.strides[i] = result.strides[i + 1];
  }
  --result.shape.rank;
  return result;
}

TensorView SplitDim(const TensorView& view, int axis, int64_t outer, int64_t inner) {
  TensorView result = view;
  for (int i = view.rank(); i > axis + 1; --i) {
    result.shape.dims[i] = view.shape.dims[i - 1];
    result.strides[i] = view.strides[i - 1];
  }
  result.shape.dims[axis] = outer;
  result.strides[axis] = view.strides[axis] * inner;
  result.shape.dims[axis + 1] = inner;
  result.strides[axis + 1] = view.strides[axis];
  ++result.shape.rank;
  return result;
}

std::string ToString(const TensorView& view) {
  return absl::StrCat(Str(Name(view.dtype)), " ", ToString(view.shape));
}

absl::Status ValidateView(std::string_view name, const TensorView& view) {
  if (view.rank() < 1 || view.rank() > kMaxRank) {
    return InvalidArgument(Str(name), ": expected rank 1..", kMaxRank, ", got ", view.rank());
  }
  if (!IsKnown(view.dtype)) {
    return InvalidArgument(Str(name), ": unknown dtype value ", static_cast<int>(view.dtype));
  }
  for (int i = 0; i < view.rank(); ++i) {
    if (view.shape.dims[i] < 0) {
      return InvalidArgument(Str(name), " dimension ", i, ": expected >= 0, got ",
                             view.shape.dims[i]);
    }
    if (view.strides[i] < 0) {
      return InvalidArgument(Str(name), " stride ", i, ": expected >= 0, got ", view.strides[i]);
    }
  }
  const auto count = NumElements(view.shape);
  if (!count) {
    return InvalidArgument(Str(name), ": the number of elements of ", ToString(view.shape),
                           " overflows 64 bits");
  }
  const int block = BlockLength(view.dtype);
  if (block > 1) {
    const int last = view.rank() - 1;
    if (view.shape.dims[last] % block != 0 ||
        (view.shape.dims[last] > 1 && view.strides[last] != 1)) {
      return InvalidArgument(Str(name), " (", Str(Name(view.dtype)),
                             "): the last dimension must be contiguous and a multiple of ", block);
    }
    // Nothing is addressed in an empty view, whatever its strides ([n, 0] has row stride 1).
    for (int i = 0; i<last&& * count> 0; ++i) {
      if (view.shape.dims[i] > 1 && view.strides[i] % block != 0) {
        return InvalidArgument(Str(name), " (", Str(Name(view.dtype)), ") stride ", i,
                               ": expected a multiple of ", block, ", got ", view.strides[i]);
      }
    }
  }
  if (*count == 0) return absl::OkStatus();
  const auto last = LastElement(view);
  // Room for the element itself and for any offset arithmetic on the way to it.
  if (!last || *last > INT64_MAX / 16) {
    return InvalidArgument(Str(name), ": the address range of ", ToString(view.shape),
                           " with its strides overflows 64 bits");
  }
  if (view.data == nullptr) return InvalidArgument(Str(name), ": data is null");
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(Alignment(view.dtype)) != 0) {
    return InvalidArgument(Str(name), ": data is not aligned to ", Alignment(view.dtype),
                           " bytes as ", Str(Name(view.dtype)), " needs");
  }
  return absl::OkStatus();
}

absl::Status ValidateView(std::string_view name, const TensorView& view, int rank) {
  if (view.rank() != rank) {
    return InvalidArgument(Str(name), ": expected rank ", rank, ", got ", view.rank());
  }
  return ValidateView(name, view);
}

absl::Status ValidateOutput(std::string_view name, const TensorView& view, int rank) {
  TANDEM_RETURN_IF_ERROR(ValidateView(name, view, rank));
  if (view.empty()) return absl::OkStatus();
  // Sorted by stride, each dimension must step over everything the smaller ones reach.
  std::array<int, kMaxRank> order{};
  int n = 0;
  for (int i = 0; i < view.rank(); ++i) {
    if (view.shape.dims[i] > 1) order[n++] = i;
  }
  std::sort(order.begin(), order.begin() + n,
            [&](int a, int b) { return view.strides[a] < view.strides[b]; });
  int64_t reach = 0;
  for (int j = 0; j < n; ++j) {
    const int i = order[j];
    if (view.strides[i] <= reach) {
      return InvalidArgument(Str(name), " stride ", i,
                             ": elements of an output must not share addresses (stride ",
                             view.strides[i], ")");
    }
    reach += (view.shape.dims[i] - 1) * view.strides[i];
  }
  return absl::OkStatus();
}

absl::Status CheckNoOverlap(std::string_view out_name, const TensorView& out,
                            std::string_view in_name, const TensorView& in) {
  if (Overlaps(out, in)) return InvalidArgument(Str(out_name), " overlaps ", Str(in_name));
  return absl::OkStatus();
}

absl::Status CheckInPlaceOrDisjoint(std::string_view out_name, const TensorView& out,
                                    std::string_view in_name, const TensorView& in) {
  if (SameElements(out, in)) return absl::OkStatus();
  return CheckNoOverlap(out_name, out, in_name, in);
}

absl::Status CheckDim(std::string_view name, const TensorView& view, int axis,
                      std::string_view meaning, int64_t expected) {
  if (view.dim(axis) != expected) {
    return InvalidArgument(Str(name), " dimension ", axis, " (", Str(meaning), "): expected ",
                           expected, ", got ", view.dim(axis));
  }
  return absl::OkStatus();
}

absl::Status CheckFloat(std::string_view name, const TensorView& view) {
  if (!IsFloat(view.dtype)) {
    return InvalidArgument(Str(name), ": expected dtype f32, f16 or bf16, got ",
                           Str(Name(view.dtype)));
  }
  return absl::OkStatus();
}

absl::Status CheckDType(std::string_view name, const TensorView& view, DType expected) {
  if (view.dtype != expected) {
    return InvalidArgument(Str(name), ": expected dtype ", Str(Name(expected)), ", got ",
                           Str(Name(view.dtype)));
  }
  return absl::OkStatus();
}

absl::Status CheckSameDevice(std::string_view name, const TensorView& view,
                             std::string_view reference_name, const TensorView& reference) {
  if (view.device != reference.device) {
    return InvalidArgument(Str(name), " is on ", Name(view.device), " but ", Str(reference_name),
                           " is on ", Name(reference.device));
  }
  return absl::OkStatus();
}

}  // namespace tandem
