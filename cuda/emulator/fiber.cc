// Stack switching for x86-64 System V: a switch saves the six callee-saved registers and swaps the
// stack pointer. The floating-point control words are the same for all fibers and are not saved.
#include "cuda/emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#if TANDEM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if TANDEM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// void tandem_emulator_switch(void** save, void* load)
asm(R"(
.text
.globl tandem_emulator_switch
.hidden tandem_emulator_switch
.type tandem_emulator_switch, @function
tandem_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tandem_emulator_switch, .-tandem_emulator_switch
.globl tandem_emulator_start
.hidden tandem_emulator_start
.type tandem_emulator_start, @function
tandem_emulator_start:
  movq %r12, %rdi
  xorl %ebp, %ebp
  callq *%r13
  ud2
.size tandem_emulator_start, .-tandem_emulator_start
)");
extern "C" void tandem_emulator_switch(void** save, void* load);
extern "C" void tandem_emulator_start();

namespace tandem::cuda::emulator {

size_t FiberStackBytes() {
#if TANDEM_ASAN || TANDEM_TSAN
  return size_t{512} << 10;
#else
  return size_t{128} << 10;
#endif
}

Fiber::Fiber(size_t stack_bytes) {
  guard_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapped_ = (stack_bytes + guard_ - 1) / guard_ * guard_ + guard_;
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (base_ == MAP_FAILED || mprotect(base_, guard_, PROT_NONE) != 0) {
    base_ = nullptr;
    throw std::bad_alloc();  // caught by RunKernel
  }
}

Fiber::~Fiber() {
  if (base_ == nullptr) return;
#if TANDEM_ASAN
  // Frames that were abandoned leave their redzones poisoned.
  __asan_unpoison_memory_region(base_, mapped_);
#endif
#if TANDEM_TSAN
  if (race_context_ != nullptr && ended_) __tsan_destroy_fiber(race_context_);
#endif
  munmap(base_, mapped_);
}

void Fiber::Start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
#if TANDEM_TSAN
  // One that was left in the middle of a kernel keeps its calls: it is never used again.
  if (race_context_ == nullptr || !ended_) race_context_ = __tsan_create_fiber(0);
#endif
  ended_ = false;
#if TANDEM_ASAN
  __asan_unpoison_memory_region(static_cast<char*>(base_) + guard_, mapped_ - guard_);
  own_shadow_ = nullptr;
#endif
  // As tandem_emulator_switch leaves a stack: r15, r14, r13, r12, rbx, rbp, return address.
  // tandem_emulator_start calls r13 with r12; the stack is then aligned as at any call.
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(base_) + mapped_);
  uint64_t* frame = top - 11;
  frame[0] = frame[1] = 0;
  frame[2] = reinterpret_cast<uint64_t>(&Fiber::Enter);
  frame[3] = reinterpret_cast<uint64_t>(this);
  frame[4] = frame[5] = 0;
  frame[6] = reinterpret_cast<uint64_t>(&tandem_emulator_start);
  // `ret` leaves the stack pointer at frame + 7: 32 bytes below the top, aligned to 16 for the
  // call.
  own_ = frame;
}

void Fiber::Abandon([[maybe_unused]] void* order) {
#if TANDEM_TSAN
  void* const host = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_context_, __tsan_switch_to_fiber_no_sync);
  __tsan_release(order);
  __tsan_switch_to_fiber(host, __tsan_switch_to_fiber_no_sync);
#endif
}

void Fiber::Enter(Fiber* self) {
#if TANDEM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self->host_bottom_, &self->host_size_);
#endif
  self->entry_(self->argument_);
  std::fputs("emulator: a fiber's entry returned\n", stderr);
  std::abort();
}

void Fiber::Resume() {
#if TANDEM_ASAN
  __sanitizer_start_switch_fiber(&host_shadow_, static_cast<char*>(base_) + guard_,
                                 mapped_ - guard_);
#endif
#if TANDEM_TSAN
  host_race_context_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_context_, __tsan_switch_to_fiber_no_sync);
#endif
  tandem_emulator_switch(&host_, own_);
#if TANDEM_ASAN
  __sanitizer_finish_switch_fiber(host_shadow_, nullptr, nullptr);
#endif
}

void Fiber::Suspend(bool last) {
#if TANDEM_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &own_shadow_, host_bottom_, host_size_);
#endif
#if TANDEM_TSAN
  __tsan_switch_to_fiber(host_race_context_, __tsan_switch_to_fiber_no_sync);
#endif
  ended_ = last;
  tandem_emulator_switch(&own_, host_);
#if TANDEM_ASAN
  __sanitizer_finish_switch_fiber(own_shadow_, &host_bottom_, &host_size_);
#endif
}

}  // namespace tandem::cuda::emulator
