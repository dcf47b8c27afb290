// Conformance of the device wrappers: every primitive of cuda/device/ on random inputs, against
// what its documentation says, computed on the host. The same cases run on a GPU and on the
// emulated device. On a GPU they check the PTX (and our reading of its documentation); what the GPU
// answered can be recorded, so that the emulator is checked against hardware where there is none.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_probe.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

using Bytes = std::vector<std::byte>;

// Device memory, launches and copies for one case.
class ConformanceRunner {
 public:
  // `device`: an ordinal, or kEmulatedDevice.
  ConformanceRunner(Runtime& runtime, int device, StreamHandle stream)
      : runtime_(runtime), device_(device), stream_(stream) {}
  ~ConformanceRunner();
  ConformanceRunner(const ConformanceRunner&) = delete;
  ConformanceRunner& operator=(const ConformanceRunner&) = delete;

  absl::StatusOr<void*> Upload(const Bytes& bytes);
  absl::StatusOr<Bytes> Download(const void* data, size_t bytes);
  absl::Status Launch(const KernelFunction& gpu, const KernelFunction& emulated,
                      const LaunchConfig& config, const void* params);
  Runtime& runtime() { return runtime_; }

 private:
  Runtime& runtime_;
  int device_;
  StreamHandle stream_;
  std::vector<void*> memory_;
};

struct ConformanceCase {
  std::string name;    // "wgmma.bf16.n64.shared.k_major.128"
  int capability = 0;  // compute capability it needs, 80 or 90; 90 means exactly 9.x for wgmma
  std::function<absl::StatusOr<Bytes>(ConformanceRunner&)> run;
  Bytes expected;
  // Bytes are f32 that may differ from `expected` by this much absolutely, or are compared exactly.
  float tolerance = 0.0f;
  bool exact = true;
};

// All cases, the same every time.
std::vector<ConformanceCase> ConformanceCases();

// "" or how `got` differs from `expected`, which may be the case's own or a recording.
std::string Difference(const ConformanceCase& c, const Bytes& expected, const Bytes& got);

struct ConformanceResult {
  std::string name;
  std::string error;    // "": right
  std::string skipped;  // why it cannot run on this device
  Bytes output;
};

// Runs one case on a device of the runtime.
ConformanceResult RunConformanceCase(const ConformanceCase& c, Runtime& runtime,
                                     const DeviceInfo& device);

}  // namespace tandem::cuda
