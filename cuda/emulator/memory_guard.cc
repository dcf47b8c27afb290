#include "cuda/emulator/memory_guard.h"

#if defined(__SANITIZE_ADDRESS__)
#define TANDEM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TANDEM_ASAN 1
#endif
#endif
#ifdef TANDEM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace tandem::cuda::emulator {

#ifdef TANDEM_ASAN
void PoisonMemory(const void* data, size_t bytes) { __asan_poison_memory_region(data, bytes); }
void UnpoisonMemory(const void* data, size_t bytes) { __asan_unpoison_memory_region(data, bytes); }
#else
void PoisonMemory(const void*, size_t) {}
void UnpoisonMemory(const void*, size_t) {}
#endif

}  // namespace tandem::cuda::emulator
