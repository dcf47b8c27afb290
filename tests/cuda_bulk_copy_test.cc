// Bulk copies (TMA) in the emulator: correct kernels give the right result and no report in every
// order of threads and completions; each planted bug is caught.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/device/bulk_copy.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "tests/kernel_verdicts.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// --- a ring of bulk copies with mbarriers

constexpr int kBox = 64;  // rows of a box; a row is 128 bytes
constexpr int kBoxColumns = 32;
enum class RingBug {
  kNone,
  kWrongBytes,
  kNoFullWait,
  kNoEmptyWait,
  kReleasedEarly,
  kNoInitFence,
  kTooManyArrivals,
};

// Thread 0 loads boxes of a [rows, 32] tensor through a ring of two; warps 1.. add them up:
// out[r * 32 + c] = sum over boxes.
template <RingBug kBug>
__global__ void RingKernel(const AsyncParams p) {
  SharedCarver shared;
  constexpr int kSlots = 2, kBytes = kBox * kBoxColumns * 4, kConsumers = 64;
  auto* ring = shared.Take<float>(kSlots * kBox * kBoxColumns, 1024);
  auto* full = shared.Take<Mbarrier>(kSlots);
  auto* empty = shared.Take<Mbarrier>(kSlots);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    for (int s = 0; s < kSlots; ++s) {
      MbarrierInit(&full[s], 1);
      MbarrierInit(&empty[s], kConsumers);
    }
    if (kBug != RingBug::kNoInitFence) FenceMbarrierInit();
  }
  SyncThreads();
  if (t < 32) {
    if (t != 0) return;
    for (int64_t tile = 0; tile < p.tiles; ++tile) {
      const int64_t slot = tile % kSlots, round = tile / kSlots;
      if (kBug != RingBug::kNoEmptyWait && round > 0) {
        MbarrierWait(&empty[slot], static_cast<uint32_t>((round - 1) & 1));
      }
      MbarrierArriveExpect(&full[slot], kBug == RingBug::kWrongBytes ? kBytes + 16 : kBytes);
      const int32_t at[2] = {0, static_cast<int32_t>(tile * kBox)};
      TensorLoad(ring + slot * kBox * kBoxColumns, &p.map, at, &full[slot]);
    }
    return;
  }
  const int c = t - 32;  // of 64: a row each
  float sums[kBoxColumns] = {};
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    const int64_t slot = tile % kSlots, round = tile / kSlots;
    if (kBug != RingBug::kNoFullWait) MbarrierWait(&full[slot], static_cast<uint32_t>(round & 1));
    if (kBug == RingBug::kReleasedEarly) {
      MbarrierArrive(&empty[slot]);
      SyncWarp();  // somebody else runs
    }
    for (int i = 0; i < kBoxColumns; ++i) {
      // Swizzled by 128 bytes: chunk j of row r is at chunk j ^ (r % 8).
      const int chunk = (i / 4) ^ (c % 8);
      sums[i] += ring[slot * kBox * kBoxColumns + c * kBoxColumns + chunk * 4 + i % 4];
    }
    if (kBug != RingBug::kReleasedEarly) MbarrierArrive(&empty[slot]);
    if (kBug == RingBug::kTooManyArrivals && c == 0) MbarrierArrive(&empty[slot]);
  }
  for (int i = 0; i < kBoxColumns; ++i) p.out[c * kBoxColumns + i] = sums[i];
}

template <RingBug kBug>
std::string RingVerdicts() {
  constexpr int64_t kTiles = 6;
  // The last box reaches 10 rows beyond the tensor, where it finds zeros.
  constexpr int64_t kRows = kTiles * kBox - 10;
  std::vector<float> in(static_cast<size_t>(kRows * kBoxColumns) + 4);
  float* data = in.data();
  while (reinterpret_cast<uintptr_t>(data) % 16 != 0) ++data;
  std::vector<float> expected(kBox * kBoxColumns);
  for (int64_t i = 0; i < kRows * kBoxColumns; ++i) {
    data[i] = static_cast<float>(i * 13 % 37);
    expected[static_cast<size_t>(i % (kBox * kBoxColumns))] += data[i];
  }
  TensorMapSpec spec;
  spec.data = data;
  spec.rank = 2;
  spec.extent = {kBoxColumns, kRows};
  spec.stride = {0, kBoxColumns * 4};
  spec.box = {kBoxColumns, kBox};
  spec.swizzle = Swizzle::k128;
  AsyncParams params;
  params.tiles = kTiles;
  params.map = emulator::EncodeTensorMap(spec).value();
  return Verdicts<&RingKernel<kBug>>(params, expected, 96, 2 * kBox * kBoxColumns * 4 + 4 * 8);
}

TEST(EmulatorAsync, RingOfBulkCopiesIsRightInEveryMode) {
  EXPECT_EQ(RingVerdicts<RingBug::kNone>(), "");
}
TEST(EmulatorCatches, WrongExpectedBytes) {
  EXPECT_THAT(RingVerdicts<RingBug::kWrongBytes>(),
              AllOf(HasSubstr("deadlock"), HasSubstr("mbarrier"), HasSubstr("16 bytes missing"),
                    HasSubstr("phase 0")));
}
TEST(EmulatorCatches, BulkCopyWithUnfencedMbarrier) {
  EXPECT_THAT(RingVerdicts<RingBug::kNoInitFence>(), HasSubstr("has not been fenced"));
}
TEST(EmulatorCatches, MoreArrivalsThanExpected) {
  if (kAddressSanitized) GTEST_SKIP() << "the read itself ends the program";
  EXPECT_THAT(RingVerdicts<RingBug::kTooManyArrivals>(), HasSubstr("arrivals"));
}
TEST(EmulatorCatches, MissingEmptyWait) {
  if (kAddressSanitized) GTEST_SKIP() << "the read itself ends the program";
  EXPECT_THAT(RingVerdicts<RingBug::kNoEmptyWait>(),
              AnyOf(HasSubstr("still writing"), HasSubstr("arrivals"), HasSubstr("wrong result")));
}
TEST(EmulatorCatches, MissingFullWait) {
  if (kAddressSanitized) GTEST_SKIP() << "the read itself ends the program";
  EXPECT_THAT(RingVerdicts<RingBug::kNoFullWait>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, SlotReleasedEarly) {
  if (kAddressSanitized) GTEST_SKIP() << "the read itself ends the program";
  EXPECT_THAT(RingVerdicts<RingBug::kReleasedEarly>(), HasSubstr("wrong result"));
}

// --- bulk stores

enum class StoreBug { kNone, kNoFence, kOneWarpDoesNotFence, kNoWait, kOverwritesSource };

template <StoreBug kBug>
__global__ void StoreKernel(const AsyncParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(kBox * kBoxColumns, 128);
  const int t = static_cast<int>(threadIdx.x);  // of 64
  for (int i = 0; i < kBoxColumns; ++i) {
    tile[t * kBoxColumns + i] = static_cast<float>(t * 100 + i);
  }
  if (kBug != StoreBug::kNoFence && (kBug != StoreBug::kOneWarpDoesNotFence || t < 32)) {
    FenceProxyAsync();
  }
  SyncThreads();
  if (t == 0) {
    const int32_t at[2] = {0, 0};
    TensorStore(&p.out_map, at, tile);
    BulkCommit();
    if (kBug == StoreBug::kOverwritesSource) {
      tile[0] = 5.0f;
      FenceProxyAsync();
    }
    if (kBug != StoreBug::kNoWait) BulkWait<0>();
  }
}

template <StoreBug kBug>
std::string StoreVerdicts() {
  constexpr int64_t kRows = 60;  // the last four rows of the box are left out
  std::vector<float> memory(kBox * kBoxColumns + 4);
  float* out = memory.data();
  while (reinterpret_cast<uintptr_t>(out) % 16 != 0) ++out;
  std::vector<float> expected(kBox * kBoxColumns, -1.0f);
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kBoxColumns; ++c) {
      expected[r * kBoxColumns + c] = static_cast<float>(r * 100 + c);
    }
  }
  TensorMapSpec spec;
  spec.data = out;
  spec.rank = 2;
  spec.extent = {kBoxColumns, kRows};
  spec.stride = {0, kBoxColumns * 4};
  spec.box = {kBoxColumns, kBox};
  AsyncParams params;
  params.out = out;
  params.out_map = emulator::EncodeTensorMap(spec).value();
  return Verdicts<&StoreKernel<kBug>>(params, expected, 64, kBox * kBoxColumns * 4);
}

TEST(EmulatorAsync, BulkStoreIsRightInEveryMode) {
  EXPECT_EQ(StoreVerdicts<StoreBug::kNone>(), "");
}
TEST(EmulatorCatches, BulkStoreWithoutProxyFence) {
  EXPECT_THAT(StoreVerdicts<StoreBug::kNoFence>(), HasSubstr("without fence.proxy.async"));
}
TEST(EmulatorCatches, BulkStoreWithoutProxyFenceOfOneWarp) {
  EXPECT_THAT(StoreVerdicts<StoreBug::kOneWarpDoesNotFence>(),
              HasSubstr("without fence.proxy.async"));
}
TEST(EmulatorCatches, ThreadEndsBeforeItsBulkStore) {
  EXPECT_THAT(StoreVerdicts<StoreBug::kNoWait>(), HasSubstr("ends before its bulk store"));
}
TEST(EmulatorCatches, SourceOfABulkStoreOverwritten) {
  EXPECT_THAT(StoreVerdicts<StoreBug::kOverwritesSource>(), HasSubstr("wrong result"));
}

// Every tile goes through the same piece of shared memory: it can be filled again as soon as the
// store before has read it.
enum class ReuseBug { kNone, kNoReadWait, kReadWaitOffByOne, kResultAfterReadWait };

template <ReuseBug kBug>
__global__ void ReuseSource(const AsyncParams p) {
  constexpr int kFloats = 64;
  SharedCarver shared;
  auto* tile = shared.Take<float>(kFloats);
  const int t = static_cast<int>(threadIdx.x);  // of kFloats
  for (int64_t i = 0; i < p.tiles; ++i) {
    tile[t] = static_cast<float>(i * 100 + t);
    FenceProxyAsync();
    SyncThreads();
    if (t == 0) {
      BulkStore(p.out + i * kFloats, tile, kFloats * 4);
      BulkCommit();
      if (kBug == ReuseBug::kReadWaitOffByOne) {
        BulkWaitRead<1>();
      } else if (kBug != ReuseBug::kNoReadWait) {
        BulkWaitRead<0>();
      }
    }
    SyncThreads();
  }
  if (t == 0) {
    if (kBug == ReuseBug::kResultAfterReadWait) p.out[p.tiles * kFloats] = p.out[1];
    if (kBug == ReuseBug::kNoReadWait || kBug == ReuseBug::kReadWaitOffByOne) BulkWait<0>();
    // A thread may end when its stores have read: the launch ends after they have written.
  }
}

template <ReuseBug kBug>
std::string ReuseVerdicts() {
  constexpr size_t kTiles = 4, kFloats = 64;
  alignas(16) float out[kTiles * kFloats + 4];
  std::vector<float> expected(kTiles * kFloats);
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] = static_cast<float>(i / kFloats * 100 + i % kFloats);
  }
  if (kBug == ReuseBug::kResultAfterReadWait) expected.push_back(expected[1]);
  AsyncParams params;
  params.out = out;
  params.tiles = kTiles;
  return Verdicts<&ReuseSource<kBug>>(params, expected, kFloats, kFloats * 4);
}

TEST(EmulatorAsync, SourcesOfBulkStoresAreReusedAfterTheirReadWait) {
  EXPECT_EQ(ReuseVerdicts<ReuseBug::kNone>(), "");
}
TEST(EmulatorCatches, SourceOfABulkStoreReusedWithoutReadWait) {
  EXPECT_THAT(ReuseVerdicts<ReuseBug::kNoReadWait>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, ReadWaitOfABulkStoreOffByOne) {
  EXPECT_THAT(ReuseVerdicts<ReuseBug::kReadWaitOffByOne>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, ResultOfABulkStoreAfterItsReadWaitOnly) {
  EXPECT_THAT(ReuseVerdicts<ReuseBug::kResultAfterReadWait>(), HasSubstr("wrong result"));
}

}  // namespace
}  // namespace tandem::cuda::emulated
