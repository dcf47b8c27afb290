#include "cuda/emulator/watchdog.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "cuda/emulator/block.h"
#include "cuda/emulator/races.h"

#ifndef sigev_notify_thread_id  // older C libraries do not name it
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace tandem::cuda::emulator {
namespace {

// Ignored unless a program asks for it. ThreadSanitizer delivers it only at the next call that it
// intercepts, which a loop may never make; SIGSYS it delivers at once.
constexpr int kSignal = kDetectsRaces ? SIGSYS : SIGURG;

void OnTimer(int) {
  const int error = errno;
  if (KernelCode::Running()) Block::Current().OnTimer();
  errno = error;
}

// The handler stays: outside of launches it does what the default does, nothing.
bool InstallHandler() {
  struct sigaction current = {};
  if (sigaction(kSignal, nullptr, &current) != 0) return false;
  if (current.sa_handler == &OnTimer) return true;
  if (current.sa_handler != SIG_DFL && current.sa_handler != SIG_IGN) return false;
  struct sigaction own = {};
  own.sa_handler = &OnTimer;
  // Left by a switch of stacks, not by returning: the signal must not stay blocked.
  own.sa_flags = SA_NODEFER | SA_RESTART;
  return sigaction(kSignal, &own, nullptr) == 0;
}

}  // namespace

Watchdog::Watchdog(double seconds) {
  if (!(seconds > 0.0) || !InstallHandler()) return;
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = kSignal;
  event.sigev_notify_thread_id = gettid();
  if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_) != 0) return;
  itimerspec period = {};
  const double whole = std::floor(seconds);
  period.it_interval.tv_sec = static_cast<time_t>(whole);
  period.it_interval.tv_nsec = static_cast<long>((seconds - whole) * 1e9);
  period.it_value = period.it_interval;
  running_ = timer_settime(timer_, 0, &period, nullptr) == 0;
  if (!running_) timer_delete(timer_);
}

Watchdog::~Watchdog() {
  if (running_) timer_delete(timer_);
}

void EndStuckProcess(const char* kernel, const std::array<uint32_t, 3>& block,
                     const std::array<uint32_t, 3>& thread) {
  std::array<char, 512> text;
  size_t size = 0;
  const auto put = [&](const char* from) {
    while (*from != 0 && size < text.size()) text[size++] = *from++;
  };
  const auto put_index = [&](const std::array<uint32_t, 3>& index) {
    const char* before = "[";
    for (uint32_t i : index) {
      std::array<char, 11> digits;
      size_t at = digits.size() - 1;
      digits[at] = 0;
      do {
        digits[--at] = static_cast<char>('0' + i % 10);
      } while ((i /= 10) != 0);
      put(before);
      put(&digits[at]);
      before = ", ";
    }
    put("]");
  };
  put("kernel ");
  put(kernel);
  put(" (emulated), block ");
  put_index(block);
  put(": stuck: thread ");
  put_index(thread);
  put(" runs on and on without a barrier, a wait or a Yield; the process ends\n");
  syscall(SYS_write, STDERR_FILENO, text.data(), size);
  for (;;) syscall(SYS_exit_group, EXIT_FAILURE);
}

}  // namespace tandem::cuda::emulator
