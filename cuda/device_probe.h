// Which CUDA devices this machine has, for a build with or without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tandem::cuda {

// One device as the CUDA runtime describes it.
struct DeviceInfo {
  int index = 0;  // CUDA ordinal
  std::string name;
  int compute_capability_major = 0;
  int compute_capability_minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t l2_cache_bytes = 0;
  int64_t shared_memory_per_block_bytes = 0;  // the opt-in maximum
  int memory_bus_bits = 0;
  bool integrated = false;      // shares its memory with the host
  bool unified_memory = false;  // can read pageable host memory
};

// What this build and this machine offer; never an error, for a machine without a device is usual.
struct Probe {
  bool built_with_cuda = false;
  std::string toolkit_version;      // of the runtime linked in, e.g. "13.0"; empty without CUDA
  std::string driver_version;       // newest CUDA version the driver supports; empty without driver
  std::vector<DeviceInfo> devices;  // empty when there is no driver or no device
  std::string message;              // one line for people
};

// Enumerates the devices. Creates no CUDA context and allocates no device memory.
Probe ProbeDevices();

}  // namespace tandem::cuda
