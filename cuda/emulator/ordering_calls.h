// The calls by which a kernel orders its threads, copies and products: barriers, waits, arrivals,
// fences, commits. A test that leaves out one at a time shows that the kernel needs each of them,
// and that a missing one is noticed: by the emulator, or in the result.
#pragma once

#include <atomic>
#include <set>
#include <string>

#include "cuda/emulator/thread.h"

namespace tandem::cuda::emulator {

// Of the launches whose EmulatorOptions name it. May be used from several threads.
class OrderingCalls {
 public:
  // Those met so far: "CopyAsyncWait attention_prefill_kernel.h:301". A place in the source is one
  // call, whatever instantiates it.
  std::set<std::string> met() const;
  // From now on nothing happens at this call. "": all calls are made.
  void LeaveOut(const std::string& call);

  // Of the emulator: is the running thread's call to be left out?
  bool LeavesOut(const char* name, Site site);

 private:
  // ThreadSanitizer does not see it: a mutex would order what it watches.
  class Lock {
   public:
    explicit Lock(std::atomic_flag& flag) : flag_(flag) {
      while (flag_.test_and_set()) {
      }
    }
    ~Lock() { flag_.clear(); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

   private:
    std::atomic_flag& flag_;
  };

  mutable std::atomic_flag busy_;
  std::set<std::string> met_;
  std::string left_out_;
};

}  // namespace tandem::cuda::emulator
