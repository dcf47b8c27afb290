// Data races in kernels. ThreadSanitizer is the detector: every CUDA thread is a thread to it.
// These tests mean something in the tsan build only; in the others the planted races are just slow
// to show.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/device/bulk_copy.h"
#include "cuda/device/matrix.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/warp.h"
#include "cuda/emulator/launch.h"
#include "tests/race_reports.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {
namespace {

using emulator::EmulatorOptions;

struct Params {
  float* out = nullptr;
  const float* in = nullptr;
};

template <auto kKernel>
void RunAll(int64_t blocks, int64_t threads, int64_t shared_bytes, const Params& params) {
  LaunchConfig config;
  config.grid.x = blocks;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  for (const char* mode : {"fifo", "reverse,eager", "random:1,random", "random:2,random"}) {
    const absl::Status status = emulator::RunKernel(MakeKernelFunction<kKernel>("race"), config,
                                                    &params, EmulatorOptions::Parse(mode).value());
    ASSERT_TRUE(status.ok()) << mode << ": " << status;
  }
}

// Reports for a kernel; without a race detector: as many as are wanted.
template <auto kKernel>
bool Races(int64_t blocks, int64_t threads, int64_t shared_bytes) {
  alignas(16) static float in[4096];
  std::vector<float> out(4096);
  const RacesExpected expected;
  RunAll<kKernel>(blocks, threads, shared_bytes, {out.data(), in});
  return expected.reports() > 0;
}

#define TANDEM_NEEDS_TSAN() \
  if (!kThreadSanitized) GTEST_SKIP() << "needs ThreadSanitizer"

__global__ void ExchangeThroughShared(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(blockDim.x);
  for (int round = 0; round < 3; ++round) {
    tile[threadIdx.x] = static_cast<float>(threadIdx.x + round);
    SyncThreads();
    p.out[int64_t{blockIdx.x} * blockDim.x + threadIdx.x] += tile[(threadIdx.x + 33) % blockDim.x];
    SyncThreads();
  }
}

__global__ void ExchangeInWarp(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(blockDim.x);
  tile[threadIdx.x] = 1.0f;
  SyncWarp();
  const float x = tile[threadIdx.x ^ 1];
  SyncWarp();
  tile[threadIdx.x] = x + WarpSum(x);
  p.out[int64_t{blockIdx.x} * blockDim.x + threadIdx.x] = tile[threadIdx.x];
}

TEST(EmulatorRaces, CorrectKernelsHaveNone) {
  std::vector<float> out(1024);
  const int before = RaceReports();
  RunAll<&ExchangeThroughShared>(4, 128, 512, {out.data(), nullptr});
  RunAll<&ExchangeInWarp>(4, 128, 512, {out.data(), nullptr});
  EXPECT_EQ(RaceReports(), before);
}

__global__ void NoBarrier(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(blockDim.x);
  tile[threadIdx.x] = 1.0f;
  p.out[int64_t{blockIdx.x} * blockDim.x + threadIdx.x] = tile[(threadIdx.x + 33) % blockDim.x];
}

TEST(EmulatorCatches, MissingSyncThreadsAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&NoBarrier>(1, 64, 256)));
}

__global__ void NoSecondBarrier(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(blockDim.x);
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = static_cast<float>(round);
    SyncThreads();
    p.out[threadIdx.x] = tile[(threadIdx.x + 33) % blockDim.x];
  }
}

TEST(EmulatorCatches, OverwritingBeforeABarrierAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&NoSecondBarrier>(1, 64, 256)));
}

// A shuffle exchanges registers; it orders nothing in memory.
__global__ void NoSyncWarp(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(32);
  tile[threadIdx.x] = 1.0f;
  const float x = ShuffleXor(2.0f, 1);
  p.out[threadIdx.x] = x + tile[threadIdx.x ^ 1];
}

TEST(EmulatorCatches, MissingSyncWarpAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&NoSyncWarp>(1, 32, 128)));
}

__global__ void LdmatrixWithoutSyncWarp(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(32);
  tile[threadIdx.x] = 1.0f;
  uint32_t x[1];
  LoadMatrices<1>(x, tile + threadIdx.x % 8 * 4);
  p.out[threadIdx.x] = static_cast<float>(x[0]);
}

TEST(EmulatorCatches, LdmatrixWithoutSyncWarpAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&LdmatrixWithoutSyncWarp>(1, 32, 128)));
}

__global__ void AllBlocksWriteOneElement(const Params p) {
  if (threadIdx.x == blockIdx.x) p.out[0] = static_cast<float>(blockIdx.x);
}

TEST(EmulatorCatches, RaceBetweenBlocks) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&AllBlocksWriteOneElement>(4, 32, 0)));
}

// The same thread of every block.
__global__ void AllBlocksAddToOneElement(const Params p) {
  if (threadIdx.x == 0) p.out[0] += 1.0f;
}

TEST(EmulatorCatches, RaceBetweenTheSameThreadsOfBlocks) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&AllBlocksAddToOneElement>(4, 32, 0)));
}

// Reads what a bulk copy has written after a wait by somebody else.
template <bool kWaits>
__global__ void ReadsABulkCopy(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(64, 128);
  auto* full = shared.Take<Mbarrier>(1);
  if (threadIdx.x == 0) {
    MbarrierInit(full, 1);
    FenceMbarrierInit();
  }
  SyncThreads();
  if (threadIdx.x == 0) {
    MbarrierArriveExpect(full, 256);
    BulkLoad(tile, p.in, 256, full);
  }
  if (kWaits || threadIdx.x < 32) MbarrierWait(full, 0);
  if (!kWaits && threadIdx.x >= 32) {
    for (int i = 0; i < 20; ++i) SyncWarp();  // time passes
  }
  p.out[threadIdx.x] = tile[threadIdx.x];
  SyncThreads();
}

TEST(EmulatorRaces, BulkCopiesAreOrderedByTheirMbarrier) {
  alignas(16) float in[64] = {};
  std::vector<float> out(64);
  const int before = RaceReports();
  RunAll<&ReadsABulkCopy<true>>(1, 64, 264, {out.data(), in});
  EXPECT_EQ(RaceReports(), before);
}
TEST(EmulatorCatches, MissingMbarrierWaitAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&ReadsABulkCopy<false>>(1, 64, 264)));
}

// Its source is the copy unit's until that has read it, its destination until it has written.
enum class StoreRace { kNone, kSourceTooEarly, kResultTooEarly };

template <StoreRace kRace>
__global__ void BulkStoreThenReuse(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(64);
  tile[threadIdx.x] = 1.0f;
  FenceProxyAsync();
  SyncThreads();
  if (threadIdx.x == 0) {
    BulkStore(p.out, tile, 256);
    BulkCommit();
    if (kRace == StoreRace::kSourceTooEarly) {
      tile[0] = 2.0f;
      FenceProxyAsync();
    }
    BulkWaitRead<0>();
    tile[1] = 2.0f;
    if (kRace == StoreRace::kResultTooEarly) p.out[64] = p.out[0];
    BulkWait<0>();
    p.out[65] = p.out[1];
  }
}

TEST(EmulatorRaces, BulkStoresAreOrderedByTheirWaits) {
  alignas(16) float out[66];
  const int before = RaceReports();
  RunAll<&BulkStoreThenReuse<StoreRace::kNone>>(1, 64, 256, {out, nullptr});
  EXPECT_EQ(RaceReports(), before);
}
TEST(EmulatorCatches, SourceOfABulkStoreOverwrittenAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&BulkStoreThenReuse<StoreRace::kSourceTooEarly>>(1, 64, 256)));
}
TEST(EmulatorCatches, ResultOfABulkStoreAfterItsReadWaitAsARace) {
  TANDEM_NEEDS_TSAN();
  EXPECT_TRUE((Races<&BulkStoreThenReuse<StoreRace::kResultTooEarly>>(1, 64, 256)));
}

}  // namespace
}  // namespace tandem::cuda::emulated
