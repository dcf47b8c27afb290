#include "dispatch/transfer.h"

#include "core/backend.h"
#include "core/status.h"
#include "dispatch/context.h"
#include "dispatch/dense.h"

namespace tandem {
namespace {

TensorView At(TensorView view, void* data) {
  view.data = data;
  return view;
}

}  // namespace

void Transfer::Add(TensorView& view, Access access, Device to) {
  if (!view.present() || view.device == to) return;  // lists may be in host memory anyway
  const TensorView original = view;
  view.device = to;
  if (original.empty()) return;  // nothing to copy, and its address is never used
  size_t index = 0;
  while (index < moved_.size() && !SameElements(moved_[index].original, original)) ++index;
  if (index == moved_.size()) {
    Moved& moved = moved_.emplace_back();
    moved.original = original;
    moved.staged = original.device.kind == DeviceKind::kCpu ? Dense(original) : original;
    moved.staged.device = to;
    moved.bytes = ByteExtent(moved.staged);
  }
  Moved& moved = moved_[index];
  moved.read = moved.read || access != Access::kWrite;
  moved.written = moved.written || access != Access::kRead;
  // What lies between the elements comes along, and goes back with them.
  if (original.device.kind != DeviceKind::kCpu && !IsContiguous(original)) moved.read = true;
  view = moved.staged;
  uses_.push_back({&view, index});
}

absl::Status Transfer::Upload(ContextDevice& from, ContextDevice& to) {
  const bool to_host = to.backend->device().kind == DeviceKind::kCpu;
  ContextDevice& cuda = to_host ? from : to;
  for (Moved& moved : moved_) {
    TANDEM_ASSIGN_OR_RETURN(moved.buffer, to.backend->allocator().Allocate(moved.bytes));
    moved.staged.data = moved.buffer->data();
    if (!moved.read) continue;
    bytes_ += moved.bytes;
    const void* source = moved.original.data;
    std::shared_ptr<Buffer> dense;
    if (!to_host && !IsContiguous(Once(moved.original))) {
      TANDEM_ASSIGN_OR_RETURN(dense, from.backend->allocator().Allocate(moved.bytes));
      CopyElements(At(Once(moved.staged), dense->data()), Once(moved.original));
      source = dense->data();
    }
    // From host memory that is not page-locked this returns when it has been read.
    TANDEM_RETURN_IF_ERROR(
        cuda.backend->Copy(*cuda.stream, moved.staged.data, source, moved.bytes));
  }
  if (to_host) TANDEM_RETURN_IF_ERROR(cuda.stream->Synchronize());
  for (const Use& use : uses_) use.view->data = moved_[use.moved].staged.data;
  return absl::OkStatus();
}

absl::Status Transfer::Download(ContextDevice& from, ContextDevice& to) {
  const bool from_host = from.backend->device().kind == DeviceKind::kCpu;
  if (from_host) {
    for (const Moved& moved : moved_) {
      if (!moved.written) continue;
      bytes_ += moved.bytes;
      TANDEM_RETURN_IF_ERROR(
          to.backend->Copy(*to.stream, moved.original.data, moved.staged.data, moved.bytes));
    }
    return to.stream->Synchronize();
  }
  Allocator* pinned = from.backend->pinned_allocator();
  Allocator& landing = pinned != nullptr ? *pinned : to.backend->allocator();
  int64_t total = 0;
  for (const Moved& moved : moved_) {
    if (moved.written)
      total += (moved.bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
  if (total > 0 && (from.landing == nullptr || from.landing->bytes() < total)) {
    from.landing.reset();
    TANDEM_ASSIGN_OR_RETURN(from.landing, landing.Allocate(total));
  }
  int64_t at = 0;
  for (const Moved& moved : moved_) {
    if (!moved.written) continue;
    bytes_ += moved.bytes;
    TANDEM_RETURN_IF_ERROR(from.backend->Copy(*from.stream,
                                              static_cast<char*>(from.landing->data()) + at,
                                              moved.staged.data, moved.bytes));
    at += (moved.bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
  TANDEM_RETURN_IF_ERROR(from.stream->Synchronize());
  at = 0;
  for (const Moved& moved : moved_) {
    if (!moved.written) continue;
    CopyElements(moved.original, At(moved.staged, static_cast<char*>(from.landing->data()) + at));
    at += (moved.bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
  return absl::OkStatus();
}

}  // namespace tandem
