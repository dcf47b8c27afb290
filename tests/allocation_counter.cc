// The counting operator new. Linked into every test binary; see allocation_counter.h.
#include "tests/allocation_counter.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> g_allocations{0};

void* Counted(size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes ? bytes : 1);
}

void* CountedAligned(size_t bytes, std::align_val_t alignment) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  const auto step = static_cast<size_t>(alignment);
  return std::aligned_alloc(step, (bytes / step + 1) * step);
}

}  // namespace

// The array forms of the standard library call these. noinline: GCC otherwise sees malloc paired
// with delete where a caller is inlined, and warns.
__attribute__((noinline)) void* operator new(size_t bytes) {
  if (void* p = Counted(bytes)) return p;
  std::abort();
}
// std::stable_sort uses this form.
__attribute__((noinline)) void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return Counted(bytes);
}
__attribute__((noinline)) void* operator new(size_t bytes, std::align_val_t alignment) {
  if (void* p = CountedAligned(bytes, alignment)) return p;
  std::abort();
}
__attribute__((noinline)) void* operator new(size_t bytes, std::align_val_t alignment,
                                             const std::nothrow_t&) noexcept {
  return CountedAligned(bytes, alignment);
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace tandem {

int64_t AllocationCount() { return g_allocations.load(std::memory_order_relaxed); }

}  // namespace tandem
