#include "dispatch/copy.h"

#include <cstring>

#include "core/status.h"

namespace tandem {
namespace {

absl::StatusOr<ContextDevice*> Find(Context& context, DeviceKind kind) {
  ContextDevice* device = context.device(kind);
  if (device == nullptr) {
    return InvalidArgument("device: ", std::string(Name(kind)), " is not present");
  }
  return device;
}

// No op that could report it need follow.
absl::Status Noted(Context& context, absl::Status status) {
  if (absl::IsUnavailable(status)) context.health().Lose(Message(status));
  return status;
}

}  // namespace

absl::Status Copy(Context& context, const TensorView& from, const TensorView& to) {
  TANDEM_RETURN_IF_ERROR(ValidateView("from", from));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("to", to, from.rank()));
  TANDEM_RETURN_IF_ERROR(CheckDType("to", to, from.dtype));
  for (int i = 0; i < from.rank(); ++i) {
    TANDEM_RETURN_IF_ERROR(CheckDim("to", to, i, "shape of from", from.dim(i)));
  }
  if (!IsContiguous(from) || !IsContiguous(to)) {
    return InvalidArgument("from, to: expected contiguous tensors");
  }
  const int64_t bytes = ByteExtent(from);
  if (bytes == 0) return absl::OkStatus();
  const DeviceKind kind = from.device.kind != DeviceKind::kCpu ? from.device.kind : to.device.kind;
  TANDEM_ASSIGN_OR_RETURN(ContextDevice * device, Find(context, kind));
  return Noted(context, device->backend->Copy(*device->stream, to.data, from.data, bytes));
}

absl::StatusOr<Tensor> AllocateOn(Context& context, DeviceKind kind, DType dtype,
                                  const Shape& shape) {
  TANDEM_ASSIGN_OR_RETURN(ContextDevice * device, Find(context, kind));
  absl::StatusOr<Tensor> tensor = Tensor::Allocate(device->backend->allocator(), dtype, shape);
  if (!tensor.ok()) return Noted(context, tensor.status());
  return tensor;
}

absl::StatusOr<Tensor> CopyTo(Context& context, DeviceKind kind, const TensorView& from) {
  TANDEM_ASSIGN_OR_RETURN(Tensor to, AllocateOn(context, kind, from.dtype, from.shape));
  TANDEM_RETURN_IF_ERROR(Copy(context, from, to));
  return to;
}

absl::Status Synchronize(Context& context, DeviceKind kind) {
  TANDEM_ASSIGN_OR_RETURN(ContextDevice * device, Find(context, kind));
  return Noted(context, device->stream->Synchronize());
}

}  // namespace tandem
