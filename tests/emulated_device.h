// An emulated device of its own, without a context, for tests that call kernels one by one.
#pragma once

#include <memory>
#include <string>

#include "cuda/backend.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"
#include "tests/cases/run.h"

namespace tandem::cases {

class EmulatedDevice {
 public:
  explicit EmulatedDevice(const cuda::EmulatedRuntimeOptions& options)
      : backend_(*cuda::MakeCudaBackend(cuda::MakeEmulatedRuntime(options),
                                        {.device = kEmulatedDevice})),
        stream_(*backend_->CreateStream()) {}
  // `mode`: an order of threads and completions (cuda/emulator/launch.h).
  explicit EmulatedDevice(const std::string& mode = "fifo",
                          cuda::emulator::EmulatorStatistics* statistics = nullptr)
      : EmulatedDevice(Options(mode, statistics)) {}

  Backend& backend() const { return *backend_; }
  cuda::CudaStream& stream() const { return static_cast<cuda::CudaStream&>(*stream_); }
  Target target() const {
    return {.backend = backend_.get(), .stream = stream_.get(), .pack = nullptr};
  }

  static cuda::EmulatedRuntimeOptions Options(const std::string& mode,
                                              cuda::emulator::EmulatorStatistics* statistics) {
    cuda::EmulatedRuntimeOptions options;
    options.emulator = cuda::emulator::EmulatorOptions::Parse(mode).value();
    options.emulator.statistics = statistics;
    return options;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace tandem::cases
