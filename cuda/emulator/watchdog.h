// Finds threads of a kernel that run on and on without a barrier, a wait or a Yield: a scheduler of
// fibers never gets the host thread back from them by itself.
//
// A timer of the host thread's own CPU time (a machine that is busy, or stopped for a while, is no
// reason) sends it a signal. The handler runs on the fiber of the CUDA thread. When nothing but
// that thread has run since the signal before, and it is in kernel code, which holds no lock and
// owns nothing, its fiber is left where it is for good, and the launch ends with a report.
// ThreadSanitizer's runtime cannot be left like that: there the report ends the process.
#pragma once

#include <array>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace tandem::cuda::emulator {

// Is the host thread in the code of a kernel, and not in the emulator or on its own stack?
class KernelCode {
 public:
  static bool Running() { return running_; }

  // Enters or leaves it for as long as it lives.
  class Scope {
   public:
    explicit Scope(bool running) : outer_(running_) { running_ = running; }
    ~Scope() { running_ = outer_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    bool outer_;
  };
  // Does not come back.
  static void Leave() { running_ = false; }

 private:
  static inline thread_local volatile bool running_ = false;
};

// Of the calling host thread, while it runs blocks. Does nothing where the system gives no timer or
// the program has a use of its own for the signal.
class Watchdog {
 public:
  // A thread is reported after `seconds` at the earliest, after twice as long at the latest.
  explicit Watchdog(double seconds);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  timer_t timer_{};
  bool running_ = false;
};

// Writes a report of a thread that cannot be left, and ends the process. Of a signal handler: calls
// nothing but the system, not even what ThreadSanitizer intercepts.
[[noreturn]] void EndStuckProcess(const char* kernel, const std::array<uint32_t, 3>& block,
                                  const std::array<uint32_t, 3>& thread);

}  // namespace tandem::cuda::emulator
