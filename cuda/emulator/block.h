// One block of a launch while it runs: its threads, which of them wait for what, its barriers,
// warps and shared memory. Internal to the emulator.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulator/async_unit.h"
#include "cuda/emulator/fiber.h"
#include "cuda/emulator/launch.h"
#include "cuda/emulator/shared_arena.h"
#include "cuda/emulator/thread.h"
#include "cuda/emulator/warpgroup.h"

namespace tandem::cuda::emulator {

// What all blocks of a launch share.
struct Launch {
  const KernelFunction* function = nullptr;
  LaunchConfig config;
  const void* params = nullptr;
  EmulatorOptions options;
  std::atomic<int64_t> next_block{0};
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  std::string report;    // of the first error, guarded by mutex
  char end_order = 0;    // what happened in its threads
  char fence_order = 0;  // before its device-wide fences

  int64_t num_blocks() const { return config.grid.x * config.grid.y * config.grid.z; }
};

// Memory that one host thread reuses for the blocks it runs.
struct BlockPool {
  std::vector<std::unique_ptr<Fiber>> fibers;
  SharedArena shared;
};

class Block {
 public:
  Block(Launch& launch, BlockPool& pool, int64_t index);
  // That of the running thread.
  static Block& Current();

  // Runs all threads to their end. False when the launch was stopped.
  bool Run();

  // Of the running thread.
  void SyncBarrier(int id, int threads, bool same_site, Site site);
  void ArriveBarrier(int id, int threads, Site site);
  void WarpCollective(const char* operation, uint32_t mask, void* data, CollectiveFn execute,
                      Site site);
  // A collective that also orders what its lanes do to memory.
  void SyncWarp(uint32_t mask, Site site);
  void* SharedPiece(int64_t offset, int64_t bytes, int index, int64_t alignment, Site site);
  void Yield(Site site);
  void Fence(bool device);
  [[noreturn]] void Report(const std::string& what);

  // Of its units, for the running thread.
  const EmulatorOptions& options() const { return launch_.options; }
  SharedArena& arena() { return pool_.shared; }
  AsyncUnit& async() { return async_; }
  Warpgroups& warpgroups() { return warpgroups_; }
  int running_thread() const { return running_; }
  uint64_t Random() { return random_(); }
  // Lets other threads run until somebody calls MakeReady. `barrier`: number or address of what it
  // waits for, for reports.
  void Suspend(const char* waits_for, int barrier, Site site);
  void Suspend(const char* waits_for, const void* barrier, Site site);
  void MakeReady(int thread);
  // What happened so far happened before the launch's end.
  void ReleaseToHost();
  // Ends the launch with an error that is not the running thread's.
  void Fail(const std::string& what) { Stop(what); }
  EmulatorStatistics& statistics() { return statistics_; }
  // Of the watchdog, in its signal handler, while the running thread is in kernel code.
  void OnTimer();

 private:
  enum class State : uint8_t { kReady, kWaiting, kDone };
  struct Lane {
    Thread thread;
    State state = State::kReady;
    Fiber* fiber = nullptr;  // nullptr: not started
    // Why it waits, for reports.
    const char* waits_for = "";
    int barrier = -1;
    const void* mbarrier = nullptr;
    Site site;
  };
  struct Barrier {
    uint32_t phase = 0;
    std::array<char, 2> order{};  // by parity of the phase: what arrivals happened before
    int arrived = 0;
    int expected = 0;
    Site site;  // of the first arrival
    int first_thread = -1;
    std::vector<int> waiting;
  };
  struct Collective {  // of some lanes of a warp
    const char* operation = nullptr;
    uint32_t mask = 0;
    uint32_t arrived = 0;
    Site site;
    std::array<void*, kWarpSize> data{};
  };
  struct Warp {
    std::vector<Collective> open;  // under way, of different masks
    uint32_t phase = 0;            // collectives that have ended
    std::array<char, 2> order{};   // of SyncWarp, by parity of the phase
  };

  static void ThreadMain(void* block);
  Lane& running() { return lanes_[static_cast<size_t>(running_)]; }
  int num_threads() const { return static_cast<int>(lanes_.size()); }
  int PickReady();
  Barrier& Arrive(int id, int threads, bool same_site, Site site);
  void Complete(Barrier& barrier);
  Fiber* EndThread();  // of the running thread; its fiber is to be suspended for good
  void CheckExit();
  void ReportDeadlock();
  std::string Describe(const Lane& lane) const;
  std::string DescribeStuck() const;
  void Stop(const std::string& what);

  Launch& launch_;
  BlockPool& pool_;
  Index3 index_;
  std::vector<Lane> lanes_;
  std::deque<int> ready_;  // of which any may be next, most often the first
  std::vector<Fiber*> free_fibers_;
  std::array<Barrier, 16> barriers_;
  std::vector<Warp> warps_;
  AsyncUnit async_;
  Warpgroups warpgroups_;
  EmulatorStatistics statistics_;
  char start_order_ = 0;  // what happened before the block
  char fence_order_ = 0;  // before its fences
  int64_t yields_ = 0;
  int running_ = -1;
  int done_ = 0;
  bool stopped_ = false;
  int64_t resumed_ = 0;            // how often a thread went on
  int64_t resumed_at_timer_ = -1;  // when the watchdog last looked
  bool stuck_ = false;             // the running thread, which the watchdog has left
  std::mt19937_64 random_;
};

std::string ToString(Site site);
std::string ToString(Index3 index);

}  // namespace tandem::cuda::emulator
