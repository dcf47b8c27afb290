// Bulk copies by the tensor memory accelerator (sm_90): whole boxes of a tensor of up to five
// dimensions, or runs of bytes, moved by one thread's instruction. Loads complete on an mbarrier
// that expects their bytes; stores in groups of the issuing thread.
//
// The accelerator and wgmma see shared memory through the async proxy: what threads wrote there is
// seen after a FenceProxyAsync by every writing thread, followed by a barrier. What a load wrote is
// seen by all who have waited for its mbarrier.
#pragma once

#include "cuda/device/mbarrier.h"
#include "cuda/device/shared_address.h"
#include "cuda/device/target.h"
#include "cuda/runtime/tensor_map.h"
#if TANDEM_CUDA_EMULATED
#include "cuda/emulator/async.h"
#endif

namespace tandem::cuda::TANDEM_CUDA_TARGET {

#if TANDEM_CUDA_EMULATED

inline void FenceProxyAsync(emulator::Site site = emulator::Site::Here()) {
  emulator::FenceProxyAsync(site);
}
inline void PrefetchTensorMap(const TensorMap*) {}
template <int kRank>
void TensorLoad(void* shared, const TensorMap* map, const int32_t (&at)[kRank], Mbarrier* barrier,
                emulator::Site site = emulator::Site::Here()) {
  emulator::TensorLoad(shared, map, kRank, at, barrier, site);
}
template <int kRank>
void TensorStore(const TensorMap* map, const int32_t (&at)[kRank], const void* shared,
                 emulator::Site site = emulator::Site::Here()) {
  emulator::TensorStore(map, kRank, at, shared, site);
}
inline void BulkLoad(void* shared, const void* global, uint32_t bytes, Mbarrier* barrier,
                     emulator::Site site = emulator::Site::Here()) {
  emulator::BulkLoad(shared, global, bytes, barrier, site);
}
inline void BulkStore(void* global, const void* shared, uint32_t bytes,
                      emulator::Site site = emulator::Site::Here()) {
  emulator::BulkStore(global, shared, bytes, site);
}
inline void BulkCommit(emulator::Site site = emulator::Site::Here()) { emulator::BulkCommit(site); }
template <int kPending>
void BulkWaitRead(emulator::Site site = emulator::Site::Here()) {
  emulator::BulkWait(kPending, true, site);
}
template <int kPending>
void BulkWait(emulator::Site site = emulator::Site::Here()) {
  emulator::BulkWait(kPending, false, site);
}

#else

// This thread's writes to shared memory so far are seen by bulk copies and wgmma.
__device__ __forceinline__ void FenceProxyAsync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}
// Fetches the 128 bytes of a tensor map ahead of its first use.
__device__ __forceinline__ void PrefetchTensorMap(const TensorMap* map) {
#if __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// Loads the box at element `at` (innermost dimension first, may lie outside: zeros) to `shared`,
// aligned to 128 bytes. `map`: a __grid_constant__ parameter of the kernel.
template <int kRank>
__device__ __forceinline__ void TensorLoad(void* shared, const TensorMap* map,
                                           const int32_t (&at)[kRank], Mbarrier* barrier) {
  static_assert(kRank >= 1 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t to = internal::SharedAddress(shared), bar = internal::SharedAddress(barrier);
#define TANDEM_TENSOR_LOAD(rank, coordinates, ...)                                             \
  asm volatile("cp.async.bulk.tensor." rank                                                    \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" coordinates \
               "}], [%2];" ::"r"(to),                                                          \
               "l"(map), "r"(bar), __VA_ARGS__                                                 \
               : "memory")
  if constexpr (kRank == 1) {
    TANDEM_TENSOR_LOAD("1d", "%3", "r"(at[0]));
  } else if constexpr (kRank == 2) {
    TANDEM_TENSOR_LOAD("2d", "%3, %4", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    TANDEM_TENSOR_LOAD("3d", "%3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kRank == 4) {
    TANDEM_TENSOR_LOAD("4d", "%3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    TANDEM_TENSOR_LOAD("5d", "%3, %4, %5, %6, %7", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
                       "r"(at[4]));
  }
#undef TANDEM_TENSOR_LOAD
#else
  __trap();
#endif
}

// Stores a box; what lies outside the tensor is left out.
template <int kRank>
__device__ __forceinline__ void TensorStore(const TensorMap* map, const int32_t (&at)[kRank],
                                            const void* shared) {
  static_assert(kRank >= 1 && kRank <= 5);
#if __CUDA_ARCH__ >= 900
  const uint32_t from = internal::SharedAddress(shared);
#define TANDEM_TENSOR_STORE(rank, coordinates, ...)                                             \
  asm volatile("cp.async.bulk.tensor." rank ".global.shared::cta.bulk_group [%0, {" coordinates \
               "}], [%1];" ::"l"(map),                                                          \
               "r"(from), __VA_ARGS__                                                           \
               : "memory")
  if constexpr (kRank == 1) {
    TANDEM_TENSOR_STORE("1d", "%2", "r"(at[0]));
  } else if constexpr (kRank == 2) {
    TANDEM_TENSOR_STORE("2d", "%2, %3", "r"(at[0]), "r"(at[1]));
  } else if constexpr (kRank == 3) {
    TANDEM_TENSOR_STORE("3d", "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  } else if constexpr (kRank == 4) {
    TANDEM_TENSOR_STORE("4d", "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
  } else {
    TANDEM_TENSOR_STORE("5d", "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
                        "r"(at[4]));
  }
#undef TANDEM_TENSOR_STORE
#else
  __trap();
#endif
}

// `bytes` from global to shared memory, or back; addresses and size are multiples of 16.
__device__ __forceinline__ void BulkLoad(void* shared, const void* global, uint32_t bytes,
                                         Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(internal::SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(internal::SharedAddress(barrier))
      : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void BulkStore(void* global, const void* shared, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(internal::SharedAddress(shared)), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

// Ends the group of stores issued since the last Commit.
__device__ __forceinline__ void BulkCommit() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
// All but the kPending last groups of this thread have read their sources: these can be
// overwritten. A thread must not end before.
template <int kPending>
__device__ __forceinline__ void BulkWaitRead() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
#endif
}
// The same, and what they wrote is seen by this thread.
template <int kPending>
__device__ __forceinline__ void BulkWait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
