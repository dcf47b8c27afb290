// Workers sleep on a generation counter. A loop publishes its task, opens a gate and bumps the
// counter; whoever comes while the gate is open joins. The tasks are cut into one range of
// neighbours per thread. Each thread, the caller included, takes tasks from the front of its own
// range and, when that is empty, the upper half of another's, until all are empty. The caller then
// closes the gate and waits for those who joined. A worker that wakes late, because the machine is
// busy, finds its range taken and the gate closed: nobody waits for a thread that has not begun.
//
// Ranges, because neighbouring tasks read neighbouring memory: a thread that walks on through it
// keeps its prefetches. With task numbers from one counter two threads alternated between strips of
// a weight matrix (140 KiB of q8_0) and read 59 GB/s where they read 85 GB/s in two long runs.
//
// Workers spin for a short while before they sleep: a decoder layer issues a loop every ~50 us, and
// a futex wake-up costs about as much. The spin is bounded in time so that an idle process uses no
// processor.
#include "cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

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
  int64_t tasks_per_unit = 1;  // ranges count units, so that two of their ends fit in 64 bits
  struct alignas(64) Range {
    std::atomic<uint64_t> ends{0};  // first unit, and one past the last << 32
  };
  std::vector<Range> ranges;
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

  static uint64_t Pack(uint64_t begin, uint64_t end) { return begin | end << 32; }
  static uint64_t Begin(uint64_t ends) { return ends & 0xFFFFFFFFu; }
  static uint64_t End(uint64_t ends) { return ends >> 32; }

  // Cuts `count` tasks into one range per worker.
  void Cut(int64_t count) {
    constexpr int64_t kMaxUnits = 1 << 20;
    tasks = count;
    tasks_per_unit = (count + kMaxUnits - 1) / kMaxUnits;
    const auto units = static_cast<uint64_t>((count + tasks_per_unit - 1) / tasks_per_unit);
    const uint64_t workers = ranges.size();
    for (uint64_t w = 0; w < workers; ++w) {
      ranges[w].ends.store(Pack(units * w / workers, units * (w + 1) / workers),
                           std::memory_order_relaxed);
    }
  }

  // The next unit of a worker's own range, or -1.
  int64_t TakeOwn(int worker) {
    std::atomic<uint64_t>& own = ranges[static_cast<size_t>(worker)].ends;
    uint64_t ends = own.load(std::memory_order_relaxed);
    while (Begin(ends) < End(ends)) {
      if (own.compare_exchange_weak(ends, Pack(Begin(ends) + 1, End(ends)),
                                    std::memory_order_relaxed)) {
        return static_cast<int64_t>(Begin(ends));
      }
    }
    return -1;
  }

  // Makes the upper half of some other range this worker's own. False if all are empty (what
  // another thief is just taking, it will run).
  bool Steal(int worker) {
    for (size_t i = 1; i < ranges.size(); ++i) {
      std::atomic<uint64_t>& other = ranges[(static_cast<size_t>(worker) + i) % ranges.size()].ends;
      uint64_t ends = other.load(std::memory_order_relaxed);
      while (Begin(ends) < End(ends)) {
        const uint64_t middle = (Begin(ends) + End(ends)) / 2;
        if (other.compare_exchange_weak(ends, Pack(Begin(ends), middle),
                                        std::memory_order_relaxed)) {
          ranges[static_cast<size_t>(worker)].ends.store(Pack(middle, End(ends)),
                                                         std::memory_order_relaxed);
          return true;
        }
      }
    }
    return false;
  }

  void Run(int worker) {
    do {
      for (int64_t unit = TakeOwn(worker); unit >= 0; unit = TakeOwn(worker)) {
        const int64_t end = std::min(tasks, (unit + 1) * tasks_per_unit);
        for (int64_t i = unit * tasks_per_unit; i < end; ++i) (*task)(i, worker);
      }
    } while (Steal(worker));
  }
};

ThreadPool::ThreadPool(int threads, bool pin)
    : size_(threads < 1 ? 1 : threads), shared_(std::make_unique<Shared>()) {
  shared_->ranges = std::vector<Shared::Range>(static_cast<size_t>(size_));
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
  s.Cut(tasks);
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
