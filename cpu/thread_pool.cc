// Workers sleep on a generation counter. A loop publishes its task, opens a gate and bumps the
// counter; whoever comes while the gate is open joins, and every thread, the caller included, takes
// task numbers from one atomic until they run out. The caller then closes the gate and waits for
// those who joined. A worker that wakes late, because the machine is busy, finds the gate closed:
// nobody waits for a thread that has not begun.
//
// Workers spin for a short while before they sleep: a decoder layer issues a loop every ~50 us, and
// a futex wake-up costs about as much. The spin is bounded in time so that an idle process uses no
// processor.
#include "cpu/thread_pool.h"

#include <sched.h>

#include <chrono>
#include <thread>

namespace tandem::cpu {
namespace {

// How long an idle worker spins before sleeping. Longer than the gap between two ops of a decoder
// layer (tens of us).
constexpr std::chrono::microseconds kSpin(100);

void CpuRelax() { __builtin_ia32_pause(); }

// Spins until done() or kSpin has passed; returns done().
template <typename Done>
bool SpinUntil(Done done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

void PinTo(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  int seen = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || seen++ != index) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    (void)sched_setaffinity(0, sizeof(one), &one);
    return;
  }
}

}  // namespace

struct ThreadPool::Shared {
  // The loop being run. Written by the caller while the gate is closed and empty, read by workers
  // that have joined.
  const Task* task = nullptr;
  int64_t tasks = 0;
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  // Number of workers inside, and whether more may join.
  static constexpr uint32_t kOpen = 1u << 31;
  alignas(64) std::atomic<uint32_t> gate{0};
  std::atomic<bool> stop{false};

  bool Join() {
    uint32_t inside = gate.load(std::memory_order_acquire);
    while (inside & kOpen) {
      if (gate.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void Leave() {
    // The last to leave a closed gate wakes the caller.
    if (gate.fetch_sub(1, std::memory_order_acq_rel) == 1) gate.notify_one();
  }

  void Run(int worker) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      (*task)(i, worker);
    }
  }
};

ThreadPool::ThreadPool(int threads, bool pin)
    : size_(threads < 1 ? 1 : threads), shared_(std::make_unique<Shared>()) {
  threads_.reserve(static_cast<size_t>(size_ - 1));
  for (int worker = 1; worker < size_; ++worker) {
    threads_.emplace_back([this, worker, pin] {
      if (pin) PinTo(worker);
      WorkerLoop(worker);
    });
  }
}

ThreadPool::~ThreadPool() {
  shared_->stop.store(true, std::memory_order_relaxed);
  shared_->generation.fetch_add(1, std::memory_order_release);
  shared_->generation.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::WorkerLoop(int worker) {
  Shared& s = *shared_;
  uint32_t seen = 0;
  while (true) {
    const auto changed = [&] { return s.generation.load(std::memory_order_acquire) != seen; };
    if (!SpinUntil(changed)) {
      while (!changed()) s.generation.wait(seen, std::memory_order_acquire);
    }
    seen = s.generation.load(std::memory_order_acquire);
    if (s.stop.load(std::memory_order_relaxed)) return;
    if (!s.Join()) continue;
    s.Run(worker);
    s.Leave();
  }
}

void ThreadPool::ParallelFor(int64_t tasks, Task fn, int64_t bytes) {
  if (tasks <= 0) return;
  if (tasks == 1 || size_ == 1 || bytes < kMinParallelBytes) {
    for (int64_t i = 0; i < tasks; ++i) fn(i, 0);
    return;
  }
  Shared& s = *shared_;
  s.task = &fn;
  s.tasks = tasks;
  s.next.store(0, std::memory_order_relaxed);
  s.gate.store(Shared::kOpen, std::memory_order_release);
  s.generation.fetch_add(1, std::memory_order_release);
  s.generation.notify_all();
  s.Run(0);
  s.gate.fetch_and(~Shared::kOpen, std::memory_order_acq_rel);
  const auto empty = [&] { return s.gate.load(std::memory_order_acquire) == 0; };
  if (SpinUntil(empty)) return;
  for (uint32_t inside = s.gate.load(std::memory_order_acquire); inside != 0;
       inside = s.gate.load(std::memory_order_acquire)) {
    s.gate.wait(inside, std::memory_order_acquire);
  }
}

}  // namespace tandem::cpu
