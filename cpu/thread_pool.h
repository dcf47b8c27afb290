// A fixed set of threads that run one parallel loop at a time.
//
// Everything parallel on the CPU, oneDNN included (called single-threaded inside each task), runs
// on this pool: two runtimes' threads never compete for the same cores. Work is cut by the *caller*
// into tasks whose number and content do not depend on the thread count, which is what makes
// results bit-identical at any thread count.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace tandem::cpu {

class ThreadPool {
 public:
  // fn(task, worker): task in [0, tasks), worker in [0, size()).
  using Task = absl::FunctionRef<void(int64_t task, int worker)>;

  // threads >= 1, the calling thread included: ThreadPool(1) starts none. pin: bind worker i to the
  // i-th processor this process may run on (the caller is left alone).
  explicit ThreadPool(int threads, bool pin = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs fn for every task and returns when all are done. Each thread begins with a range of
  // neighbouring tasks, in order, and helps the others when it is through; allocates nothing. One
  // caller at a time (streams are not shared between threads); fn must not call ParallelFor on the
  // same pool. bytes: memory that the whole loop touches, if the caller knows it. A loop over less
  // than kMinParallelBytes runs on the calling thread: sharing it would take longer than doing it.
  void ParallelFor(int64_t tasks, Task fn, int64_t bytes = INT64_MAX);

  // About what one core reads from memory in the time that handing work to another and waiting for
  // it takes (a few microseconds).
  static constexpr int64_t kMinParallelBytes = int64_t{128} << 10;

 private:
  struct Shared;
  void WorkerLoop(int worker);

  int size_;
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

}  // namespace tandem::cpu
