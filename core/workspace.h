// Scratch memory of one op call, carved from a block that the caller sized beforehand.
//
// A kernel writes its layout once, as a function of a Workspace; the same function counts
// (Workspace::Counting, nothing is handed out) and carves:
//
//   struct Layout { float* scores; float* row_max; };
//   Layout Carve(Workspace& w, const AttentionArgs& a) {
//     return {w.Take<float>(a.q.dim(2) * kTile), w.Take<float>(a.q.dim(2))};
//   }
//   workspace_bytes = [](args) { auto w = Workspace::Counting(); Carve(w, args); return
//   w.bytes_used(); }
#pragma once

#include <cstdint>

#include "core/buffer.h"
#include "core/shape.h"

namespace tandem {

class Workspace {
 public:
  static Workspace Counting() { return Workspace(nullptr, INT64_MAX, /*counting=*/true); }
  Workspace() = default;
  Workspace(void* data, int64_t bytes) : Workspace(data, bytes, /*counting=*/false) {}

  // `count` elements of T, 64-byte aligned, uninitialised. In counting mode returns nullptr. When
  // the block is too small (a kernel whose workspace_bytes disagrees with its run), returns nullptr
  // and ok() turns false.
  template <typename T>
  T* Take(int64_t count) {
    return static_cast<T*>(TakeBytes(count, static_cast<int64_t>(sizeof(T))));
  }

  int64_t bytes_used() const { return used_; }
  bool ok() const { return ok_; }

 private:
  Workspace(void* data, int64_t bytes, bool counting)
      : data_(static_cast<char*>(data)), capacity_(bytes), counting_(counting) {}

  void* TakeBytes(int64_t count, int64_t element_bytes) {
    const auto bytes = CheckedMul(count, element_bytes);
    if (!bytes || *bytes < 0 || *bytes > INT64_MAX - kBufferAlignment) {
      ok_ = false;
      return nullptr;
    }
    const int64_t rounded = (*bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
    if (rounded > capacity_ - used_) {
      ok_ = false;
      return nullptr;
    }
    void* taken = counting_ ? nullptr : data_ + used_;
    used_ += rounded;
    return taken;
  }

  char* data_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  bool counting_ = false;
  bool ok_ = true;
};

}  // namespace tandem
