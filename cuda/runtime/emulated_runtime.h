// The emulated device: the runtime's calls on host memory, kernels through cuda/emulator/.
//
// It exists for tests and for checking kernels where there is no GPU; its timings say nothing about
// one. What it does like a GPU, so that mistakes show:
//   streams     a host thread each: work runs later, and at the same time as other streams'
//   memory      a limit; addresses are checked: freed, beyond the end, of another device. Copies
//               from and to host memory that is not pinned wait for the stream, as they may there
//   faults      any call can be made to fail, once or for good (the device is lost). A kernel that
//               does what it must not loses the device: work queued on any stream is dropped, host
//               functions are not called, and from some call on, at the latest the next that waits,
//               every call returns that error (Unavailable). What is refused at once (a bad
//               address, no memory) loses nothing
//   clock       virtual, for events: latency and bandwidth of a made-up device, with jitter
//   stats       what is alive: a leak is a number
// A lost device is found again by a new runtime, as by a new process on a GPU, or by Heal().
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "cuda/emulator/launch.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

class EmulatedRuntime;

struct EmulatedRuntimeOptions {
  int64_t memory_bytes = int64_t{4} << 30;  // of the device
  int compute_capability_major = 9;
  int compute_capability_minor = 0;
  int64_t shared_memory_per_block_bytes = 227 << 10;  // of an H100
  // Of the virtual clock: seconds per launch, copy and fill; bytes per second of copies and fills.
  double latency = 5e-6;
  double bandwidth = 25e9;
  double jitter = 0.1;
  uint64_t seed = 1;  // of the jitter
  // false: launches are checked, but do nothing, for sizes that would take too long.
  bool run_kernels = true;
  emulator::EmulatorOptions emulator = {};
  // The library of matrix products; empty: the stand-in (cuda/blas/host_blas.h).
  std::function<absl::StatusOr<std::unique_ptr<Blas>>(EmulatedRuntime&)> make_blas = {};
};

// A call that will fail.
struct Fault {
  enum class Kind : uint8_t {
    kError,        // this call: Internal
    kOutOfMemory,  // this call: ResourceExhausted
    kDeviceLost,   // this call and all later ones: Unavailable
  };
  std::string call = {};  // "Allocate", "Launch", "BlasMatMul", ...; empty: any
  int64_t ordinal = 1;    // the how-manieth such call from now on
  Kind kind = Kind::kError;
  int64_t times = 1;  // so many such calls in a row fail
};

// Every call that can fail, as named in Fault::call.
inline constexpr std::array<std::string_view, 26> kFaultCalls = {
    "Memory",         "Allocate",      "Free",
    "AllocatePinned", "FreePinned",    "EncodeTensorMap",
    "CreateStream",   "DestroyStream", "Synchronize",
    "Finished",       "Copy",          "Fill",
    "Launch",         "HostFunction",  "CreateEvent",
    "DestroyEvent",   "Record",        "Wait",
    "BeginCapture",   "EndCapture",    "LaunchGraph",
    "DestroyGraph",   "BlasCreate",    "BlasPlan",
    "BlasMatMul",     "BlasDestroy"};

// KIND@CALL:ORDINAL or KIND@CALL:ORDINALxTIMES, KIND being error, oom or lost, CALL one of
// kFaultCalls or any: "lost@Launch:200", "oom@Allocate:3x2", "error@any:17". InvalidArgument
// otherwise.
absl::StatusOr<Fault> ParseFault(std::string_view text);

// What is alive.
struct EmulatedStats {
  int64_t allocations = 0;
  int64_t allocated_bytes = 0;
  int64_t pinned = 0;
  int64_t streams = 0;
  int64_t events = 0;
  int64_t graphs = 0;
  int64_t library_objects = 0;  // handles and plans of stand-ins for libraries
  friend bool operator==(const EmulatedStats&, const EmulatedStats&) = default;
};

class EmulatedRuntime : public Runtime {
 public:
  // Replaces the fault that is set. A call that releases something does so, and then fails.
  virtual void Inject(const Fault& fault) = 0;
  // Has the fault happened? From then on calls work again, unless the device was lost.
  virtual bool fault_happened() const = 0;
  // Forgets the fault, and finds a lost device, with all that is alive on it. Waits for its work.
  virtual void Heal() = 0;
  virtual EmulatedStats stats() const = 0;
  virtual int64_t calls() const = 0;
  // Those of one name (as in Fault::call).
  virtual int64_t calls(const std::string& call) const = 0;

  // For stand-ins of libraries that run on the device (cuda/blas/host_blas.h).
  // Counts a call, and fails it if it is to fail.
  virtual absl::Status Enter(const char* call) = 0;
  // InvalidArgument unless the bytes are those of one live allocation.
  virtual absl::Status CheckMemory(const char* call, const char* name, const void* data,
                                   int64_t bytes) const = 0;
  // Puts work on a stream, or records it.
  virtual absl::Status Enqueue(const char* call, StreamHandle stream,
                               std::function<void()> work) = 0;
  virtual void CountLibraryObjects(int64_t change) = 0;
};

std::unique_ptr<EmulatedRuntime> MakeEmulatedRuntime(const EmulatedRuntimeOptions& options = {});

}  // namespace tandem::cuda
