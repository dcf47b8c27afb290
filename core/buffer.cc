#include "core/buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>

#include "core/status.h"

namespace tandem {
namespace {

class HostAllocator final : public Allocator {
 public:
  Device device() const override { return {DeviceKind::kCpu, 0}; }
  int64_t bytes_in_use() const override { return in_use_.load(std::memory_order_relaxed); }

 protected:
  absl::StatusOr<void*> AllocateBytes(int64_t bytes) override {
    const bool huge = bytes >= kHugePageThreshold;
    const int64_t alignment = huge ? int64_t{2} << 20 : kBufferAlignment;
    if (bytes > INT64_MAX - alignment) return nullptr;
    // aligned_alloc wants a size that is a multiple of the alignment.
    const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
    if (data == nullptr) return nullptr;
    // Whole huge pages only: touching one byte of a last, partial one would take all of it, 1 MiB
    // per buffer on average. Advice only: a refusal costs speed, not correctness.
    if (huge) {
      const int64_t whole = bytes / alignment * alignment;
      (void)madvise(data, static_cast<size_t>(whole), MADV_HUGEPAGE);
      if (rounded > whole) {
        (void)madvise(static_cast<char*>(data) + whole, static_cast<size_t>(rounded - whole),
                      MADV_NOHUGEPAGE);
      }
    }
    in_use_.fetch_add(bytes, std::memory_order_relaxed);
    return data;
  }

  void Free(void* data, int64_t bytes) override {
    in_use_.fetch_sub(bytes, std::memory_order_relaxed);
    std::free(data);
  }

 private:
  std::atomic<int64_t> in_use_{0};
};

}  // namespace

Buffer::~Buffer() {
  if (data_ != nullptr) allocator_->Free(data_, bytes_);
}

Device Buffer::device() const { return allocator_->device(); }

absl::StatusOr<std::shared_ptr<Buffer>> Allocator::Allocate(int64_t bytes) {
  if (bytes < 0) return InvalidArgument("bytes: expected >= 0, got ", bytes);
  if (bytes == 0) return std::make_shared<Buffer>(this, nullptr, 0);
  TANDEM_ASSIGN_OR_RETURN(void* data, AllocateBytes(bytes));
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes on ", Name(device())));
  }
  return std::make_shared<Buffer>(this, data, bytes);
}

std::unique_ptr<Allocator> MakeHostAllocator() { return std::make_unique<HostAllocator>(); }

}  // namespace tandem
