// Operands sent to the other device, and results sent back, through memory that is kept from call
// to call: once it has its size nothing is allocated.
//
// A pair of blocks of one layout, page-locked host memory and GPU memory, so that a copy between
// them runs while the host goes on. Whoever sends something sees to it that the copy before has
// been waited for: its block is written again.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "core/buffer.h"
#include "core/tensor_view.h"
#include "dispatch/context.h"

namespace tandem {

class BlockPair {
 public:
  // Makes both at least `bytes` large, or only the host's. ResourceExhausted: out of memory of
  // either kind.
  absl::Status Reserve(Context& context, int64_t bytes, bool on_gpu = true);
  void* data(DeviceKind kind) const;
  int64_t bytes() const { return pinned_ == nullptr ? 0 : pinned_->bytes(); }
  // Copies the first `bytes` from one to the other on the GPU's stream.
  absl::Status Send(Context& context, DeviceKind to, int64_t bytes) const;
  void Release();

 private:
  std::shared_ptr<Buffer> pinned_, gpu_;
};

// Views to be made to lie on another device.
//   parcel.Begin(kCuda); parcel.Add(args.q); parcel.Add(args.k_new); parcel.Send(context)
// To a GPU: packed densely by the host and copied in one piece. To the host: the address range of
// each as it lies there.
class Parcel {
 public:
  static constexpr size_t kMost = 24;

  void Begin(DeviceKind to);
  // Unless it is absent or there already. The view must live until Send, which rewrites it.
  void Add(TensorView& view);
  // Queues the copies. To the host they must be waited for. Internal: more than kMost views.
  absl::Status Send(Context& context);
  // Of what has been added.
  int64_t bytes() const { return bytes_; }
  void Release() { blocks_.Release(); }

 private:
  struct Item {
    TensorView* view = nullptr;
    int64_t offset = 0;
  };

  BlockPair blocks_;
  DeviceKind to_ = DeviceKind::kCpu;
  std::array<Item, kMost> items_ = {};
  size_t count_ = 0;
  bool overflow_ = false;
  int64_t bytes_ = 0;
};

// `bytes` up to a whole number of kBufferAlignment.
inline int64_t Aligned(int64_t bytes) {
  return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

}  // namespace tandem
