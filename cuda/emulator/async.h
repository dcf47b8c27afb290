// Asynchronous copies and mbarriers, as the wrappers of cuda/device/ call them. Every function acts
// for the running CUDA thread and reports misuse as an error of the kernel.
//
// Work completes as late as it may, as early as it may, or at random (Completion in launch.h).
// Until then the destination holds NaN and is unusable under AddressSanitizer, and tensor-core
// reads of it are reported.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "cuda/emulator/thread.h"
#include "cuda/runtime/tensor_map.h"

namespace tandem::cuda::emulator {

// cp.async: `bytes` (4, 8, 16), of which `valid` come from global memory and the rest are zeros.
// Completes when its thread waits for its group.
void CopyAsync(void* shared, const void* global, int bytes, int valid, Site site);
void CopyAsyncCommit(Site site);
// All but the `pending` last groups of this thread.
void CopyAsyncWait(int pending, Site site);
// cp.async.mbarrier.arrive.noinc: an arrival once this thread's copies so far have completed.
void CopyAsyncArrive(void* barrier, Site site);

// 8 bytes of shared memory, aligned to 8. Phases are counted from 0; a phase ends when `count`
// arrivals and all expected bytes are there.
void MbarrierInit(void* barrier, int count, Site site);
void MbarrierInvalidate(void* barrier, Site site);
void MbarrierArrive(void* barrier, int count, Site site);
void MbarrierExpect(void* barrier, int64_t bytes, Site site);
// Has the phase of this parity ended? A failed test lets other threads run.
bool MbarrierTest(void* barrier, int parity, Site site);
void MbarrierWait(void* barrier, int parity, Site site);
// Makes initialisations by this thread visible to the asynchronous units.
void FenceMbarrierInit(Site site);
// fence.proxy.async: what this thread sees of shared memory, the asynchronous units see.
void FenceProxyAsync(Site site);

// What a TensorMap holds for the emulated device.
struct EmulatedTensorMap {
  uint64_t magic;
  std::byte* global;
  std::array<int64_t, 5> extent;  // elements
  std::array<int64_t, 5> stride;  // bytes; [0] is the element size
  std::array<int32_t, 5> box;     // elements
  int32_t rank;
  int32_t swizzle;  // bytes: 0, 32, 64, 128

  static constexpr uint64_t kMagic = 0x50414D524F534E54u;
};
static_assert(sizeof(EmulatedTensorMap) <= sizeof(TensorMap));
absl::StatusOr<TensorMap> EncodeTensorMap(const TensorMapSpec& spec);

// Bulk copies. Loads complete on an mbarrier, with their bytes; stores in groups, like cp.async.
// `read`: it is enough that the sources have been read.
void TensorLoad(void* shared, const void* map, int rank, const int32_t* at, void* barrier,
                Site site);
void TensorStore(const void* map, int rank, const int32_t* at, const void* shared, Site site);
void BulkLoad(void* shared, const void* global, int64_t bytes, void* barrier, Site site);
void BulkStore(void* global, const void* shared, int64_t bytes, Site site);
void BulkCommit(Site site);
void BulkWait(int pending, bool read, Site site);

}  // namespace tandem::cuda::emulator
