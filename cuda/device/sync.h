// Barriers and fences.
#pragma once

#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

#if TANDEM_CUDA_EMULATED

using emulator::Site;

inline void SyncThreads(Site site = Site::Here()) { emulator::SyncBarrier(0, 0, true, site); }
inline void SyncWarp(uint32_t mask = 0xFFFFFFFFu, Site site = Site::Here()) {
  emulator::SyncWarp(mask, site);
}
inline void NamedBarrierSync(int id, int threads, Site site = Site::Here()) {
  emulator::SyncBarrier(id, threads, false, site);
}
inline void NamedBarrierArrive(int id, int threads, Site site = Site::Here()) {
  emulator::ArriveBarrier(id, threads, site);
}
inline void FenceBlock(Site site = Site::Here()) { emulator::Fence(false, site); }
inline void FenceDevice(Site site = Site::Here()) { emulator::Fence(true, site); }

#else

// All threads of the block; also orders their accesses to memory.
__device__ inline void SyncThreads() { __syncthreads(); }
// The lanes of `mask`, which must all name the same mask.
__device__ inline void SyncWarp(uint32_t mask = 0xFFFFFFFFu) { __syncwarp(mask); }
// `threads` (a multiple of 32) threads of the block at barrier `id` 1..15; Sync waits, Arrive does
// not.
__device__ inline void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// This thread's writes so far are seen, by its block or by the device, before its later ones.
__device__ inline void FenceBlock() { __threadfence_block(); }
__device__ inline void FenceDevice() { __threadfence(); }

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
