// Memory of this process, as Linux counts it. Pages of a mapped model file count while they are in
// memory.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace tandem::tools {

// A field of /proc/self/status in bytes; 0 where there is none.
inline int64_t ProcessMemory(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string name; status >> name;) {
    int64_t kib = 0;
    if (name == field && status >> kib) return kib * 1024;
    status.clear();
    status.ignore(4096, '\n');
  }
  return 0;
}

inline int64_t ResidentBytes() { return ProcessMemory("VmRSS:"); }
// Since the process began; 0 where the kernel does not say (some sandboxes leave it out).
inline int64_t PeakResidentBytes() { return ProcessMemory("VmHWM:"); }

}  // namespace tandem::tools
