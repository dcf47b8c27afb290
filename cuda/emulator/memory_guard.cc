#include "cuda/emulator/memory_guard.h"

#if TANDEM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace tandem::cuda::emulator {

#if TANDEM_ASAN
void PoisonMemory(const void* data, size_t bytes) { __asan_poison_memory_region(data, bytes); }
void UnpoisonMemory(const void* data, size_t bytes) { __asan_unpoison_memory_region(data, bytes); }
bool IsPoisoned(const void* data, size_t bytes) {
  return bytes > 0 && __asan_region_is_poisoned(const_cast<void*>(data), bytes) != nullptr;
}
#else
void PoisonMemory(const void*, size_t) {}
void UnpoisonMemory(const void*, size_t) {}
bool IsPoisoned(const void*, size_t) { return false; }
#endif

void RawCopy(void* destination, const void* source, size_t bytes) {
  asm volatile("rep movsb" : "+D"(destination), "+S"(source), "+c"(bytes) : : "memory");
}

void RawFill(void* destination, uint8_t byte, size_t bytes) {
  asm volatile("rep stosb" : "+D"(destination), "+c"(bytes) : "a"(byte) : "memory");
}

size_t FirstDifference(const void* a, const void* b, size_t bytes) {
  const auto* x = static_cast<const unsigned char*>(a);
  const auto* y = static_cast<const unsigned char*>(b);
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t u, v;
    __builtin_memcpy(&u, x + i, 8);
    __builtin_memcpy(&v, y + i, 8);
    if (u != v) break;
  }
  while (i < bytes && x[i] == y[i]) ++i;
  return i;
}

}  // namespace tandem::cuda::emulator
