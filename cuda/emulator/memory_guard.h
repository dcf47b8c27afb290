// Memory as the emulator handles it: copied without a sanitizer's looking on, and marked for it.
//
// The files of the emulator are compiled without sanitizers (CMakeLists.txt): what they touch on
// behalf of a CUDA thread is annotated here instead, so that a report names the thread's kernel and
// not the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem::cuda::emulator {

// Marks memory as unusable or usable under AddressSanitizer; nothing otherwise.
void PoisonMemory(const void* data, size_t bytes);
void UnpoisonMemory(const void* data, size_t bytes);
// Is a byte of it unusable? Always false without AddressSanitizer.
bool IsPoisoned(const void* data, size_t bytes);

// Copies and fills that no sanitizer intercepts (memcpy and memset are intercepted).
void RawCopy(void* destination, const void* source, size_t bytes);
void RawFill(void* destination, uint8_t byte, size_t bytes);
// Index of the first byte that differs; `bytes` if none does.
size_t FirstDifference(const void* a, const void* b, size_t bytes);

}  // namespace tandem::cuda::emulator
