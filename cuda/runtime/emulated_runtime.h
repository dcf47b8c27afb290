// The emulated device: the runtime's calls on host memory, kernels through cuda/emulator/.
//
// It exists for tests and for checking kernels where there is no GPU; its timings say nothing about
// one. Every piece of work is done when it is put on a stream, so streams never have anything to
// wait for.
#pragma once

#include <cstdint>
#include <memory>

#include "cuda/emulator/launch.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

struct EmulatedRuntimeOptions {
  int64_t memory_bytes = int64_t{4} << 30;  // of the device
  emulator::EmulatorOptions emulator;
};

std::unique_ptr<Runtime> MakeEmulatedRuntime(const EmulatedRuntimeOptions& options = {});

}  // namespace tandem::cuda
