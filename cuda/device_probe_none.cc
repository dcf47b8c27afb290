// Compiled instead of device_probe.cc when the build has no CUDA toolkit.
#include "cuda/device_probe.h"

namespace tandem::cuda {

Probe ProbeDevices() {
  Probe probe;
  probe.message = "built without CUDA (CPU only)";
  return probe;
}

}  // namespace tandem::cuda
