// wgmma of one block's warpgroups. A product is issued by 128 threads and executed when a warp
// waits for its group (or as early as it may, or at random): until then its accumulators hold NaN,
// and shared memory is read only then. Completion is of the whole warpgroup.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emulator/races.h"
#include "cuda/emulator/thread.h"

namespace tandem::cuda::emulator {

class Block;

// One thread's part of a wgmma m64nNk16 of 16-bit floats with f32 accumulators.
struct WarpgroupProduct {
  int n = 0;          // columns
  bool bf16 = false;  // else f16
  bool a_in_registers = false;
  bool transpose_a = false, transpose_b = false;  // MN-major in shared memory
  bool accumulate = false;
  uint64_t a_descriptor = 0, b_descriptor = 0;
  uint32_t a[4] = {};             // with a_in_registers: copied at the issue
  float* accumulators = nullptr;  // n / 2 of them, in place

  bool SameAs(const WarpgroupProduct& o) const {
    return n == o.n && bf16 == o.bf16 && a_in_registers == o.a_in_registers &&
           transpose_a == o.transpose_a && transpose_b == o.transpose_b &&
           accumulate == o.accumulate && a_descriptor == o.a_descriptor &&
           b_descriptor == o.b_descriptor;
  }
};

// Of the running thread.
void WarpgroupFence(Site site);
void WarpgroupMultiply(const WarpgroupProduct& product, Site site);
void WarpgroupCommit(Site site);
void WarpgroupWait(int pending, Site site);
// setmaxnreg: every warp of the warpgroup must do the same.
void SetMaxRegisters(int registers, bool increase, Site site);
// The shared-memory address that a matrix descriptor holds.
uint32_t SharedAddress(const void* shared, Site site);

class Warpgroups {
 public:
  Warpgroups(Block& block, int threads);

  void Fence();
  void Multiply(const WarpgroupProduct& product, Site site);
  void Commit();
  void Wait(int pending, Site site);
  // The running thread ends: what is wrong with that, or "".
  std::string CheckExit() const;

 private:
  struct Issue {  // one product of the warpgroup
    WarpgroupProduct shape;
    Site site;
    int issued = 0;  // threads
    int64_t group = 0;
    std::vector<WarpgroupProduct> threads;
    std::vector<std::vector<float>> saved;  // accumulators at the issue, if not of an issue before
    std::unique_ptr<char> order;
  };
  struct ThreadState {
    int64_t issued = 0, committed = 0;
    bool fenced = false;
    bool open = false;  // products since the last commit
  };
  struct Group {                                   // a warpgroup
    std::deque<Issue> issues;                      // not executed
    int64_t first = 0;                             // index of issues.front()
    int64_t executed = 0;                          // commit groups
    std::vector<std::pair<int, int64_t>> waiting;  // thread, commit group
    std::vector<ThreadState> threads = std::vector<ThreadState>(128);
    std::unique_ptr<ProxyThread> proxy;
    char order = 0;
  };

  Group& Own(const char* operation, Site site);
  ThreadState& OwnThread(Group& group);
  bool Committed(const Group& group, int64_t count) const;
  void ExecuteUpTo(Group& group, int64_t count);
  std::string Execute(Group& group, Issue& issue);

  Block& block_;
  std::vector<Group> groups_;
};

}  // namespace tandem::cuda::emulator
