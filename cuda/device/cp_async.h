// cp.async: copies from global to shared memory that run while the thread goes on (sm_80). A thread
// groups its copies and waits for its own groups; other threads see them after a barrier that
// follows the wait.
#pragma once

#include "cuda/device/shared_address.h"
#include "cuda/device/target.h"
#if TANDEM_CUDA_EMULATED
#include "cuda/emulator/async.h"
#endif

namespace tandem::cuda::TANDEM_CUDA_TARGET {

#if TANDEM_CUDA_EMULATED

template <int kBytes>
void CopyAsync(void* shared, const void* global, int valid = kBytes,
               emulator::Site site = emulator::Site::Here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::CopyAsync(shared, global, kBytes, valid, site);
}
inline void CopyAsyncCommit(emulator::Site site = emulator::Site::Here()) {
  emulator::CopyAsyncCommit(site);
}
template <int kPending>
void CopyAsyncWait(emulator::Site site = emulator::Site::Here()) {
  emulator::CopyAsyncWait(kPending, site);
}

#else

// Copies kBytes (4, 8 or 16) from `global` to `shared`, both aligned to kBytes. Only the first
// `valid` are read, the rest become zeros; with valid = 0 `global` is not read at all. 16 bytes
// bypass L1.
template <int kBytes>
__device__ __forceinline__ void CopyAsync(void* shared, const void* global, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(internal::SharedAddress(shared)),
        "l"(global), "r"(valid)
        : "memory");
  } else {
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(internal::SharedAddress(shared)),
        "l"(global), "n"(kBytes), "r"(valid)
        : "memory");
  }
}
// Ends the group of copies issued since the last Commit.
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits for all groups of this thread but the kPending last.
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
