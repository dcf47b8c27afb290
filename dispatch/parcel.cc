#include "dispatch/parcel.h"

#include <algorithm>
#include <utility>

#include "core/backend.h"
#include "core/status.h"
#include "dispatch/dense.h"

namespace tandem {
namespace {

// As it will be on the other device, but for the address.
TensorView Sent(const TensorView& view) {
  return view.device.kind == DeviceKind::kCpu ? Dense(view) : view;
}

}  // namespace

absl::Status BlockPair::Reserve(Context& context, int64_t bytes, bool on_gpu) {
  if (bytes <= this->bytes() && (gpu_ != nullptr || !on_gpu)) return absl::OkStatus();
  ContextDevice* gpu = context.device(DeviceKind::kCuda);
  if (gpu == nullptr) return InvalidArgument("device: cuda is not present");
  // Growing by half at least: caches grow by a token per call, and so do masks.
  const int64_t size = std::max(bytes, this->bytes() + this->bytes() / 2);
  // Work already queued may still use the old blocks.
  if (pinned_ != nullptr) TANDEM_RETURN_IF_ERROR(gpu->stream->Synchronize());
  Release();
  Allocator* pinned = gpu->backend->pinned_allocator();
  Allocator& host = pinned != nullptr ? *pinned : context.host_allocator();
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<Buffer> on_host, host.Allocate(size));
  if (on_gpu) {
    TANDEM_ASSIGN_OR_RETURN(gpu_, gpu->backend->allocator().Allocate(size));
  }
  pinned_ = std::move(on_host);
  return absl::OkStatus();
}

void* BlockPair::data(DeviceKind kind) const {
  const std::shared_ptr<Buffer>& buffer = kind == DeviceKind::kCpu ? pinned_ : gpu_;
  return buffer == nullptr ? nullptr : buffer->data();
}

absl::Status BlockPair::Send(Context& context, DeviceKind to, int64_t bytes) const {
  ContextDevice& gpu = *context.device(DeviceKind::kCuda);
  const DeviceKind from = to == DeviceKind::kCpu ? DeviceKind::kCuda : DeviceKind::kCpu;
  return gpu.backend->Copy(*gpu.stream, data(to), data(from), bytes);
}

void BlockPair::Release() {
  pinned_.reset();
  gpu_.reset();
}

void Parcel::Begin(DeviceKind to) {
  to_ = to;
  count_ = 0;
  overflow_ = false;
  bytes_ = 0;
}

void Parcel::Add(TensorView& view) {
  if (!view.present() || view.device.kind == to_) return;
  if (count_ == kMost) {
    overflow_ = true;
    return;
  }
  items_[count_++] = {&view, bytes_};
  bytes_ += Aligned(ByteExtent(Sent(view)));
}

absl::Status Parcel::Send(Context& context) {
  if (overflow_) return absl::InternalError("parcel: too many operands");
  if (count_ == 0) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(blocks_.Reserve(context, bytes_, to_ == DeviceKind::kCuda));
  ContextDevice& gpu = *context.device(DeviceKind::kCuda);
  char* const pinned = static_cast<char*>(blocks_.data(DeviceKind::kCpu));
  char* const target = static_cast<char*>(blocks_.data(to_));
  const Device device = context.device(to_)->backend->device();
  for (size_t i = 0; i < count_; ++i) {
    const auto& [view, offset] = items_[i];
    TensorView sent = Sent(*view);
    sent.device = device;
    sent.data = target + offset;
    if (!view->empty()) {
      if (to_ == DeviceKind::kCpu) {
        TANDEM_RETURN_IF_ERROR(
            gpu.backend->Copy(*gpu.stream, sent.data, view->data, ByteExtent(*view)));
      } else {
        TensorView packed = sent;
        packed.data = pinned + offset;
        CopyElements(Once(packed), Once(*view));
      }
    }
    *view = sent;
  }
  if (to_ == DeviceKind::kCpu) return absl::OkStatus();
  return blocks_.Send(context, to_, bytes_);
}

}  // namespace tandem
