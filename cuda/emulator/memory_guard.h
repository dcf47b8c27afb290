// Poisoning of memory that kernels must not touch; does nothing without AddressSanitizer.
#pragma once

#include <cstddef>

namespace tandem::cuda::emulator {

void PoisonMemory(const void* data, size_t bytes);
void UnpoisonMemory(const void* data, size_t bytes);

}  // namespace tandem::cuda::emulator
