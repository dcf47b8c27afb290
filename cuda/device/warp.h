// Exchange between the 32 lanes of a warp, and reductions built on it. The order of sums is fixed:
// results are the same bits every time.
#pragma once

#include "cuda/device/sync.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullMask = 0xFFFFFFFFu;

#if TANDEM_CUDA_EMULATED

inline int LaneId() { return emulator::CurrentThread().lane(); }
inline int WarpId() { return emulator::CurrentThread().warp(); }

namespace internal {

// What a lane of a shuffle deposits.
template <typename T>
struct ShuffleLane {
  T value;     // offered
  int source;  // lane whose value is wanted
  T result;
};

template <typename T>
T ShuffleFrom(const char* operation, T value, int source, uint32_t mask, emulator::Site site) {
  ShuffleLane<T> lane = {value, source, value};
  emulator::WarpCollective(
      operation, mask, &lane,
      [](void* const* data, uint32_t lanes) {
        for (int i = 0; i < kWarpSize; ++i) {
          if ((lanes >> i & 1u) == 0) continue;
          auto& own = *static_cast<ShuffleLane<T>*>(data[i]);
          // A lane outside the mask gives an undefined value on a GPU: here its own.
          if (lanes >> own.source & 1u) {
            own.result = static_cast<ShuffleLane<T>*>(data[own.source])->value;
          }
        }
      },
      site);
  return lane.result;
}

struct VoteLane {
  bool vote;
  uint32_t result;
};

inline uint32_t Vote(const char* operation, bool vote, uint32_t mask, emulator::Site site) {
  VoteLane lane = {vote, 0};
  emulator::WarpCollective(
      operation, mask, &lane,
      [](void* const* data, uint32_t lanes) {
        uint32_t votes = 0;
        for (int i = 0; i < kWarpSize; ++i) {
          if (lanes >> i & 1u) {
            votes |= uint32_t{static_cast<VoteLane*>(data[i])->vote} << i;
          }
        }
        for (int i = 0; i < kWarpSize; ++i) {
          if (lanes >> i & 1u) static_cast<VoteLane*>(data[i])->result = votes;
        }
      },
      site);
  return lane.result;
}

}  // namespace internal

template <typename T>
T Shuffle(T value, int lane, uint32_t mask = kFullMask, Site site = Site::Here()) {
  return internal::ShuffleFrom("Shuffle", value, lane & 31, mask, site);
}
template <typename T>
T ShuffleXor(T value, int lane_mask, uint32_t mask = kFullMask, Site site = Site::Here()) {
  return internal::ShuffleFrom("ShuffleXor", value, (LaneId() ^ lane_mask) & 31, mask, site);
}
template <typename T>
T ShuffleUp(T value, int delta, uint32_t mask = kFullMask, Site site = Site::Here()) {
  const int lane = LaneId();
  return internal::ShuffleFrom("ShuffleUp", value, lane < delta ? lane : lane - delta, mask, site);
}
template <typename T>
T ShuffleDown(T value, int delta, uint32_t mask = kFullMask, Site site = Site::Here()) {
  const int lane = LaneId();
  return internal::ShuffleFrom("ShuffleDown", value, lane + delta > 31 ? lane : lane + delta, mask,
                               site);
}
inline uint32_t Ballot(bool vote, uint32_t mask = kFullMask, Site site = Site::Here()) {
  return internal::Vote("Ballot", vote, mask, site);
}
inline bool Any(bool vote, uint32_t mask = kFullMask, Site site = Site::Here()) {
  return internal::Vote("Any", vote, mask, site) != 0;
}
inline bool All(bool vote, uint32_t mask = kFullMask, Site site = Site::Here()) {
  return internal::Vote("All", !vote, mask, site) == 0;
}

#else

__device__ inline int LaneId() {
  int lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
__device__ inline int WarpId() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) /
                          kWarpSize);
}

// The value of another lane; T of 4 or 8 bytes. Every lane of `mask` calls it.
template <typename T>
__device__ inline T Shuffle(T value, int lane, uint32_t mask = kFullMask) {
  return __shfl_sync(mask, value, lane);
}
template <typename T>
__device__ inline T ShuffleXor(T value, int lane_mask, uint32_t mask = kFullMask) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
// From the lane `delta` below or above; a lane that has none keeps its own.
template <typename T>
__device__ inline T ShuffleUp(T value, int delta, uint32_t mask = kFullMask) {
  return __shfl_up_sync(mask, value, static_cast<unsigned>(delta));
}
template <typename T>
__device__ inline T ShuffleDown(T value, int delta, uint32_t mask = kFullMask) {
  return __shfl_down_sync(mask, value, static_cast<unsigned>(delta));
}
// Bit i: the vote of lane i.
__device__ inline uint32_t Ballot(bool vote, uint32_t mask = kFullMask) {
  return __ballot_sync(mask, vote);
}
__device__ inline bool Any(bool vote, uint32_t mask = kFullMask) { return __any_sync(mask, vote); }
__device__ inline bool All(bool vote, uint32_t mask = kFullMask) { return __all_sync(mask, vote); }

#endif

// combine(x_0, ..., x_31) as a butterfly: every lane has the result. combine is commutative.
template <typename T, typename Combine>
__device__ inline T WarpReduce(T value, Combine combine) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    value = combine(value, ShuffleXor(value, step));
  }
  return value;
}
template <typename T>
__device__ inline T WarpSum(T value) {
  return WarpReduce(value, [](T a, T b) { return a + b; });
}
// NaN wins.
__device__ inline float WarpMax(float value) {
  return WarpReduce(value, [](float a, float b) { return a > b || a != a ? a : b; });
}

// The same over a block of whole warps, all of whose threads call it. `scratch`: one T per warp, in
// shared memory, free again on return. Sums add the warps' results in order.
template <typename T, typename Combine>
__device__ inline T BlockReduce(T value, T* scratch, Combine combine) {
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / kWarpSize;
  value = WarpReduce(value, combine);
  if (LaneId() == 0) scratch[WarpId()] = value;
  SyncThreads();
  T result = scratch[0];
  for (int i = 1; i < warps; ++i) result = combine(result, scratch[i]);
  SyncThreads();
  return result;
}
template <typename T>
__device__ inline T BlockSum(T value, T* scratch) {
  return BlockReduce(value, scratch, [](T a, T b) { return a + b; });
}
__device__ inline float BlockMax(float value, float* scratch) {
  return BlockReduce(value, scratch, [](float a, float b) { return a > b || a != a ? a : b; });
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
