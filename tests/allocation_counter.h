// How many times this test binary has called operator new. Defined beside the counting operator new
// (cpu_attention_test.cc, for the CPU tests); shared libraries' calls count too.
#pragma once

#include <cstdint>

namespace tandem {

int64_t AllocationCount();

}  // namespace tandem
