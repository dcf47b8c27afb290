// Enumeration through the CUDA runtime, linked statically: the runtime looks for the driver
// (libcuda.so) only when first called, so the program starts on a machine that has none.
#include "cuda/device_probe.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"

namespace tandem::cuda {
namespace {

// CUDA encodes 13.2 as 13020.
std::string VersionString(int encoded) {
  return absl::StrCat(encoded / 1000, ".", encoded % 1000 / 10);
}

}  // namespace

Probe ProbeDevices() {
  Probe probe;
  probe.built_with_cuda = true;
  probe.toolkit_version = VersionString(CUDART_VERSION);
  const std::string runtime = absl::StrCat("CUDA ", probe.toolkit_version, " runtime: ");

  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    probe.message = absl::StrCat(runtime, "no driver found (CPU only)");
    return probe;
  }
  probe.driver_version = VersionString(driver);

  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    // The runtime keeps the error for its next caller: clear it, for it is reported here.
    (void)cudaGetLastError();
    probe.message = absl::StrCat(runtime, cudaGetErrorString(error), " (CPU only)");
    return probe;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      (void)cudaGetLastError();
      continue;
    }
    DeviceInfo& device = probe.devices.emplace_back();
    device.index = i;
    device.name = properties.name;
    device.compute_capability_major = properties.major;
    device.compute_capability_minor = properties.minor;
    device.multiprocessors = properties.multiProcessorCount;
    device.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    device.l2_cache_bytes = properties.l2CacheSize;
    device.shared_memory_per_block_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
    device.memory_bus_bits = properties.memoryBusWidth;
    device.integrated = properties.integrated != 0;
    device.unified_memory = properties.pageableMemoryAccess != 0;
  }
  probe.message = absl::StrCat(runtime, "driver for CUDA ", probe.driver_version, ", ",
                               probe.devices.size(), " of ", count, " device(s) usable");
  return probe;
}

}  // namespace tandem::cuda
