// Tensor: a view together with shared ownership of its memory.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "core/buffer.h"
#include "core/tensor_view.h"

namespace tandem {

class Tensor {
 public:
  Tensor() = default;
  Tensor(TensorView view, std::shared_ptr<Buffer> buffer)
      : view_(view), buffer_(std::move(buffer)) {}

  // Row-major, uninitialised. InvalidArgument for bad shapes, ResourceExhausted when out of memory.
  static absl::StatusOr<Tensor> Allocate(Allocator& allocator, DType dtype, const Shape& shape);

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  const std::shared_ptr<Buffer>& buffer() const { return buffer_; }
  const Shape& shape() const { return view_.shape; }
  DType dtype() const { return view_.dtype; }
  template <typename T>
  T* As() const {
    return view_.As<T>();
  }

 private:
  TensorView view_;
  std::shared_ptr<Buffer> buffer_;
};

// Bytes of a row-major tensor; InvalidArgument naming `name` if the shape is bad, overflows, or
// (block types) the last extent is not whole blocks.
absl::StatusOr<int64_t> StorageBytes(std::string_view name, DType dtype, const Shape& shape);

}  // namespace tandem
