// mbarriers: barriers in shared memory whose phases end with a number of arrivals and, for bulk
// copies, of bytes (sm_90; arrivals and waits also on sm_80). The parity of phase p is p % 2: a
// consumer of ring slot s in round r waits for parity r % 2 of the slot's "full" barrier.
#pragma once

#include "cuda/device/shared_address.h"
#include "cuda/device/target.h"
#if TANDEM_CUDA_EMULATED
#include "cuda/emulator/async.h"
#endif

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Lies in shared memory; one thread initialises it, before a FenceMbarrierInit and a SyncThreads.
struct Mbarrier {
  uint64_t state;
};

#if TANDEM_CUDA_EMULATED

inline void MbarrierInit(Mbarrier* barrier, int arrivals,
                         emulator::Site site = emulator::Site::Here()) {
  emulator::MbarrierInit(barrier, arrivals, site);
}
inline void MbarrierInvalidate(Mbarrier* barrier, emulator::Site site = emulator::Site::Here()) {
  emulator::MbarrierInvalidate(barrier, site);
}
inline void FenceMbarrierInit(emulator::Site site = emulator::Site::Here()) {
  emulator::FenceMbarrierInit(site);
}
inline void MbarrierArrive(Mbarrier* barrier, emulator::Site site = emulator::Site::Here()) {
  emulator::MbarrierArrive(barrier, 1, site);
}
inline void MbarrierArriveExpect(Mbarrier* barrier, uint32_t bytes,
                                 emulator::Site site = emulator::Site::Here()) {
  emulator::MbarrierExpect(barrier, bytes, site);
  emulator::MbarrierArrive(barrier, 1, site);
}
inline bool MbarrierTest(Mbarrier* barrier, uint32_t parity,
                         emulator::Site site = emulator::Site::Here()) {
  return emulator::MbarrierTest(barrier, static_cast<int>(parity), site);
}
inline void MbarrierWait(Mbarrier* barrier, uint32_t parity,
                         emulator::Site site = emulator::Site::Here()) {
  emulator::MbarrierWait(barrier, static_cast<int>(parity), site);
}
inline void CopyAsyncArrive(Mbarrier* barrier, emulator::Site site = emulator::Site::Here()) {
  emulator::CopyAsyncArrive(barrier, site);
}

#else

// A phase ends with this many arrivals, 1..2^20-1.
__device__ __forceinline__ void MbarrierInit(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(internal::SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// Its memory can be used for something else afterwards.
__device__ __forceinline__ void MbarrierInvalidate(Mbarrier* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(internal::SharedAddress(barrier))
               : "memory");
}
// Bulk copies see this thread's initialisations.
__device__ __forceinline__ void FenceMbarrierInit() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// What this thread did to memory before is seen by those who wait for the phase.
__device__ __forceinline__ void MbarrierArrive(Mbarrier* barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 token;\n"
      "mbarrier.arrive.shared::cta.b64 token, [%0];\n"
      "}" ::"r"(internal::SharedAddress(barrier))
      : "memory");
}
// Arrives, and makes the phase wait for `bytes` of bulk copies more.
__device__ __forceinline__ void MbarrierArriveExpect(Mbarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b64 token;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 token, [%0], %1;\n"
      "}" ::"r"(internal::SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}
// Has the phase of this parity ended?
__device__ __forceinline__ bool MbarrierTest(Mbarrier* barrier, uint32_t parity) {
  uint32_t ended;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(internal::SharedAddress(barrier)), "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}"
      : "=r"(ended)
      : "r"(internal::SharedAddress(barrier)), "r"(parity)
      : "memory");
#endif
  return ended != 0;
}
// Waits until the phase of this parity has ended.
__device__ __forceinline__ void MbarrierWait(Mbarrier* barrier, uint32_t parity) {
  while (!MbarrierTest(barrier, parity)) {
  }
}
// An arrival (one of those the barrier was initialised for) once this thread's cp.async so far have
// completed.
__device__ __forceinline__ void CopyAsyncArrive(Mbarrier* barrier) {
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(internal::SharedAddress(barrier))
      : "memory");
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
