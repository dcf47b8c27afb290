// How many times this test binary has called operator new, in any form; shared libraries' calls
// count too. Every test binary has the counting operator new (allocation_counter.cc).
#pragma once

#include <cstdint>

namespace tandem {

int64_t AllocationCount();

}  // namespace tandem
