#include "dispatch/dense.h"

#include <cstring>

namespace tandem {
namespace {

char* Address(const TensorView& view, int64_t at) {
  return static_cast<char*>(view.data) + ByteOffset(view.dtype, at);
}

// From dimension `axis` on.
void CopyFrom(const TensorView& to, const TensorView& from, int axis, int64_t to_at,
              int64_t from_at) {
  const int64_t extent = to.dim(axis), to_step = to.stride(axis), from_step = from.stride(axis);
  if (axis + 1 == to.rank()) {
    if (extent == 1 || (to_step == 1 && from_step == 1)) {
      std::memcpy(Address(to, to_at), Address(from, from_at),
                  static_cast<size_t>(ByteOffset(to.dtype, extent)));
      return;
    }
    const auto bytes = static_cast<size_t>(BlockBytes(to.dtype));  // of one element: a plain type
    for (int64_t i = 0; i < extent; ++i) {
      std::memcpy(Address(to, to_at + i * to_step), Address(from, from_at + i * from_step), bytes);
    }
    return;
  }
  for (int64_t i = 0; i < extent; ++i) {
    CopyFrom(to, from, axis + 1, to_at + i * to_step, from_at + i * from_step);
  }
}

}  // namespace

TensorView Dense(const TensorView& view) {
  TensorView dense = view;
  int64_t stride = 1;
  for (int i = view.rank() - 1; i >= 0; --i) {
    const bool repeated = view.strides[i] == 0 && view.dim(i) > 1;
    dense.strides[i] = repeated ? 0 : stride;
    if (!repeated) stride *= view.dim(i);
  }
  return dense;
}

TensorView Once(TensorView view) {
  for (int i = 0; i < view.rank(); ++i) {
    if (view.strides[i] == 0) view.shape.dims[i] = 1;
  }
  return view;
}

void CopyElements(const TensorView& to, const TensorView& from) { CopyFrom(to, from, 0, 0, 0); }

}  // namespace tandem
