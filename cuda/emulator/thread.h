// The CUDA thread that is running on this host thread: who it is, and what it may wait for.
//
// Kernel code runs on fibers, one per CUDA thread (cuda/emulator/launch.h). The wrappers of
// cuda/device/ are built on what is declared here; kernels themselves use only these wrappers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem::cuda::emulator {

inline constexpr int kWarpSize = 32;

// A place in a kernel's source, for reports. A default argument of every wrapper.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  friend bool operator==(const Site& a, const Site& b);
};

struct Index3 {
  uint32_t x = 0, y = 0, z = 0;
};

class Block;

struct Thread {
  Index3 thread_index, block_index, block_dim, grid_dim;
  int linear = 0;  // index in the block; warp = linear / 32, lane = linear % 32
  Block* block = nullptr;

  int lane() const { return linear % kWarpSize; }
  int warp() const { return linear / kWarpSize; }
};

// Of kernel code only.
Thread& CurrentThread();

// Waits until `threads` threads of the block have arrived at barrier `id` (0..15). threads = 0: all
// of the block. Arriving from two different places is an error of the kernel when `same_site`.
void SyncBarrier(int id, int threads, bool same_site, Site site);
// Arrives without waiting.
void ArriveBarrier(int id, int threads, Site site);

// What the lanes named by `mask` do together. Each deposits a pointer and waits; the last to arrive
// calls execute(data, mask), data[lane] being what that lane deposited, for all of them. Lanes
// that name different masks, operations or places are reported.
using CollectiveFn = void (*)(void* const* data, uint32_t mask);
void WarpCollective(const char* operation, uint32_t mask, void* data, CollectiveFn execute,
                    Site site);

// A collective that does nothing but order what its lanes do to memory.
void SyncWarp(uint32_t mask, Site site);

// Dynamic shared memory. `offset` bytes into what the launch asked for, `bytes` long; both the same
// for every thread. Pieces lie apart from each other, with guards between them.
void* SharedPiece(int64_t offset, int64_t bytes, int index, int64_t alignment, Site site);

// What this thread did before is before what others do after a fence of theirs that comes later.
void Fence(bool device, Site site);

// Lets other threads of the block run: in every loop that waits for memory to change.
void Yield(Site site);

// Has a test asked that nothing happen at this call (ordering_calls.h)?
bool LeavesOut(const char* call, Site site);

// Reports an error of the kernel and ends the launch. Does not return.
[[noreturn]] void ReportBug(const char* what, Site site);

}  // namespace tandem::cuda::emulator
