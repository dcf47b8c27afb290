// Runs a kernel of the emulated device: every CUDA thread is a fiber, blocks are spread over host
// threads.
//
// Which thread of a block runs next, and when asynchronous copies complete, decides what a bug
// does; no single order shows them all. Both are options, and a report names the ones in use, so
// that a run can be repeated.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/kernel_function.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda::emulator {

// Of the threads of a block that can run: the one that could first, the one that could last, the
// highest index, or a random one.
enum class Schedule : uint8_t { kFifo, kLifo, kReverse, kRandom };

struct EmulatorOptions {
  Schedule schedule = Schedule::kFifo;
  uint64_t seed = 1;     // of kRandom
  int host_threads = 0;  // that run blocks; 0: one per core
  // Threads of a block may ask this often in vain whether to go on before the launch is stopped as
  // hanging.
  int64_t max_yields = 50'000'000;

  // "fifo", "lifo", "reverse", "random:SEED". InvalidArgument otherwise.
  static absl::StatusOr<EmulatorOptions> Parse(std::string_view text);
};

// Returns when every block has finished. Internal, with the kernel, block, threads and places, when
// the kernel does what it must not; the contents of memory are then unspecified.
absl::Status RunKernel(const KernelFunction& function, const LaunchConfig& config,
                       const void* params, const EmulatorOptions& options = {});

}  // namespace tandem::cuda::emulator
