// Owners of the runtime's handles.
#pragma once

#include <utility>

#include "absl/status/statusor.h"
#include "core/status.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

// Destroys its handle with kDestroy. Errors of destruction are those of earlier work, which whoever
// waits for that work is told: they are dropped here.
template <typename Handle, absl::Status (Runtime::*kDestroy)(Handle)>
class UniqueHandle {
 public:
  UniqueHandle() = default;
  UniqueHandle(Runtime& runtime, Handle handle) : runtime_(&runtime), handle_(handle) {}
  UniqueHandle(UniqueHandle&& other) noexcept
      : runtime_(std::exchange(other.runtime_, nullptr)), handle_(other.handle_) {}
  UniqueHandle& operator=(UniqueHandle&& other) noexcept {
    std::swap(runtime_, other.runtime_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~UniqueHandle() {
    if (runtime_ != nullptr) (runtime_->*kDestroy)(handle_).IgnoreError();
  }

  Handle get() const { return handle_; }
  explicit operator bool() const { return runtime_ != nullptr; }

 private:
  Runtime* runtime_ = nullptr;
  Handle handle_;
};

using UniqueStream = UniqueHandle<StreamHandle, &Runtime::DestroyStream>;
using UniqueEvent = UniqueHandle<EventHandle, &Runtime::DestroyEvent>;
using UniqueGraph = UniqueHandle<GraphHandle, &Runtime::DestroyGraph>;

inline absl::StatusOr<UniqueStream> MakeStream(Runtime& runtime, int device) {
  TANDEM_ASSIGN_OR_RETURN(const StreamHandle handle, runtime.CreateStream(device));
  return UniqueStream(runtime, handle);
}
inline absl::StatusOr<UniqueEvent> MakeEvent(Runtime& runtime, int device) {
  TANDEM_ASSIGN_OR_RETURN(const EventHandle handle, runtime.CreateEvent(device));
  return UniqueEvent(runtime, handle);
}
// Ends the capture of a stream.
inline absl::StatusOr<UniqueGraph> MakeGraph(Runtime& runtime, StreamHandle stream) {
  TANDEM_ASSIGN_OR_RETURN(const GraphHandle handle, runtime.EndCapture(stream));
  return UniqueGraph(runtime, handle);
}

}  // namespace tandem::cuda
