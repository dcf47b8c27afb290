// Runs a kernel of the emulated device: every CUDA thread is a fiber, blocks are spread over host
// threads.
//
// Which thread of a block runs next, and when asynchronous copies complete, decides what a bug
// does; no single order shows them all. Both are options, and a report names the ones in use, so
// that a run can be repeated.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/kernel_function.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda::emulator {

// Of the threads of a block that can run: the one that could first, the one that could last, the
// highest index, or a random one.
enum class Schedule : uint8_t { kFifo, kLifo, kReverse, kRandom };

// When asynchronous work completes: when nothing else can run or somebody waits for it, when it is
// issued, or at random. Lazy shows missing waits, eager shows what is overwritten too early.
enum class Completion : uint8_t { kLazy, kEager, kRandom };

// Counted over launches.
struct EmulatorStatistics {
  std::atomic<int64_t> matrix_moves{0};    // 8x8 matrices of ldmatrix and stmatrix
  std::atomic<int64_t> bank_conflicts{0};  // extra passes over shared memory that these take

  struct Launches {
    int64_t threads = 0;  // of the largest block
    int64_t least_shared_bytes = INT64_MAX, most_shared_bytes = 0;
  };
  std::mutex mutex;
  // By function (several may have one name); guarded by mutex.
  std::map<std::pair<std::string, void (*)(const void*)>, Launches> launches;
};

class OrderingCalls;  // ordering_calls.h

// Does ThreadSanitizer watch kernels in this build?
bool DetectsRaces();

struct EmulatorOptions {
  Schedule schedule = Schedule::kFifo;
  Completion completion = Completion::kLazy;
  uint64_t seed = 1;     // of the random ones
  int host_threads = 0;  // that run blocks; 0: one per core
  // Threads of a block may ask this often in vain whether to go on before the launch is stopped as
  // hanging.
  int64_t max_yields = 50'000'000;
  // Of CPU time that a thread may run without a barrier, a wait or a Yield before the launch is
  // stopped (watchdog.h); 0: for ever.
  double stuck_seconds = 20.0;
  EmulatorStatistics* statistics = nullptr;  // added to, if not nullptr
  OrderingCalls* ordering_calls = nullptr;   // of tests that plant bugs
  // For tests of the race detector: every block runs twice, so that whatever a kernel writes races
  // with what its twin writes. The results mean nothing.
  bool twin_blocks = false;
  bool dry_run = false;  // launches are counted in the statistics, and nothing runs

  // "fifo", "lifo", "reverse" or "random:SEED", and then, if asynchronous work is not to be lazy,
  // ",eager" or ",random". InvalidArgument otherwise.
  static absl::StatusOr<EmulatorOptions> Parse(std::string_view text);
};

// Returns when every block has finished. Internal, with the kernel, block, threads and places, when
// the kernel does what it must not; the contents of memory are then unspecified.
absl::Status RunKernel(const KernelFunction& function, const LaunchConfig& config,
                       const void* params, const EmulatorOptions& options = {});

}  // namespace tandem::cuda::emulator
