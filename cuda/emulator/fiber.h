// Fibers: stacks that code can be switched between, at the cost of a function call (the standard
// library's ucontext makes two system calls per switch, 12 times slower).
#pragma once

#include <cstddef>
#include <memory>

namespace tandem::cuda::emulator {

// One stack and where it was left. Used by one host thread at a time.
class Fiber {
 public:
  // Stack bytes, committed as they are touched; a guard page lies below.
  explicit Fiber(size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next Resume calls entry(argument) from the top of the stack. entry must not return: it ends
  // with Suspend(true), after which the fiber can be started again.
  void Start(void (*entry)(void*), void* argument);
  // From the host thread's own stack: runs the fiber until it suspends.
  void Resume();
  // From the fiber: back to Resume's caller. `last`: this run is over.
  void Suspend(bool last);
  // For race detectors: what a fiber that is left in the middle did happened before what follows an
  // Acquire(order).
  void Abandon(void* order);

 private:
  static void Enter(Fiber* self);

  void* base_ = nullptr;  // lowest address of the mapping
  size_t mapped_ = 0;
  size_t guard_ = 0;
  void* own_ = nullptr;   // stack pointer while suspended
  void* host_ = nullptr;  // of the thread that resumed it
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool ended_ = true;
  // Under ThreadSanitizer: its idea of a thread, and the host's.
  void* race_context_ = nullptr;
  void* host_race_context_ = nullptr;
  // Under AddressSanitizer: the shadow stacks, and the host's stack bounds.
  void* own_shadow_ = nullptr;
  void* host_shadow_ = nullptr;
  const void* host_bottom_ = nullptr;
  size_t host_size_ = 0;
};

// Bytes a fiber's stack needs: sanitizers make frames larger.
size_t FiberStackBytes();

}  // namespace tandem::cuda::emulator
