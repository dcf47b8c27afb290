#include "core/tensor.h"

#include "core/status.h"

namespace tandem {

absl::StatusOr<int64_t> StorageBytes(std::string_view name, DType dtype, const Shape& shape) {
  const std::string label(name);
  if (!IsKnown(dtype)) {
    return InvalidArgument(label, ": unknown dtype value ", static_cast<int>(dtype));
  }
  if (shape.rank < 1 || shape.rank > kMaxRank) {
    return InvalidArgument(label, ": expected rank 1..", kMaxRank, ", got ", shape.rank);
  }
  const auto count = NumElements(shape);
  if (!count) {
    return InvalidArgument(label, ": shape ", ToString(shape),
                           " has a negative extent or overflows 64 bits");
  }
  if (shape.dims[shape.rank - 1] % BlockLength(dtype) != 0) {
    return InvalidArgument(label, ": last extent of ", ToString(shape),
                           " is not a multiple of the block length ", BlockLength(dtype));
  }
  const auto bytes = CheckedMul(*count / BlockLength(dtype), BlockBytes(dtype));
  if (!bytes) return InvalidArgument(label, ": size of ", ToString(shape), " overflows 64 bits");
  return *bytes;
}

absl::StatusOr<Tensor> Tensor::Allocate(Allocator& allocator, DType dtype, const Shape& shape) {
  TANDEM_ASSIGN_OR_RETURN(const int64_t bytes, StorageBytes("shape", dtype, shape));
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<Buffer> buffer, allocator.Allocate(bytes));
  const TensorView view = MakeView(buffer->data(), dtype, shape, allocator.device());
  return Tensor(view, std::move(buffer));
}

}  // namespace tandem
