// Asynchronous copies, mbarriers and tensor cores in the emulator: correct kernels give the right
// result and no report in every order of threads and completions; each planted bug is caught.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cuda/device/bulk_copy.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/matrix.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/warp.h"
#include "cuda/device/warpgroup.h"
#include "cuda/emulator/launch.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {
namespace {

using emulator::EmulatorOptions;
using emulator::EmulatorStatistics;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

struct Params {
  float* out = nullptr;
  const float* in = nullptr;
  int64_t tiles = 0;
  TensorMap map = {};
  TensorMap out_map = {};
};

// Every order of threads with every way to complete asynchronous work.
std::vector<std::string> Modes() {
  // ThreadSanitizer looks for races, which it finds in any order.
  if (kThreadSanitized) return {"fifo", "reverse,eager", "random:1,random"};
  std::vector<std::string> all;
  for (const char* completion : {"", ",eager", ",random"}) {
    for (const char* order : {"fifo", "lifo", "reverse"}) {
      all.push_back(std::string(order) + completion);
    }
    for (int seed = 1; seed <= 6; ++seed) {
      all.push_back("random:" + std::to_string(seed) + completion);
    }
  }
  return all;
}

template <auto kKernel>
absl::Status RunOnce(const Params& params, int64_t threads, int64_t shared_bytes,
                     const std::string& mode, EmulatorStatistics* statistics = nullptr) {
  auto options = EmulatorOptions::Parse(mode);
  EXPECT_TRUE(options.ok()) << options.status();
  options->statistics = statistics;
  LaunchConfig config;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  return emulator::RunKernel(MakeKernelFunction<kKernel>("planted"), config, &params, *options);
}

// What all modes say of a kernel that should fill `out` with `expected`: reports, and "wrong
// result" where there was none but the result is wrong. Empty for a correct kernel.
template <auto kKernel>
std::string Verdicts(const Params& given, const std::vector<float>& expected, int64_t threads,
                     int64_t shared_bytes) {
  std::string verdicts;
  Params params = given;
  std::vector<float> out(expected.size());
  if (params.out == nullptr) params.out = out.data();
  for (const std::string& mode : Modes()) {
    float* result = params.out;
    std::fill_n(result, expected.size(), -1.0f);
    const absl::Status status = RunOnce<kKernel>(params, threads, shared_bytes, mode);
    if (!status.ok()) {
      verdicts += std::string(status.message()) + "\n";
      continue;
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!(std::fabs(result[i] - expected[i]) <= 1e-3f * (1 + std::fabs(expected[i])))) {
        verdicts += mode + ": wrong result\n";
        break;
      }
    }
  }
  return verdicts;
}

// --- cp.async

constexpr int kTile = 128;  // floats
enum class CopyBug { kNone, kWaitOffByOne, kOneWarpDoesNotWait, kNoBarrier, kOverwritesEarly };

// out[i] = sum over tiles of in[tile * kTile + (i + 64) % kTile], through a ring of two tiles.
template <CopyBug kBug>
__global__ void SumTiles(const Params p) {
  SharedCarver shared;
  auto* ring = shared.Take<float>(2 * kTile);
  const int t = static_cast<int>(threadIdx.x);  // of kTile / 2
  const auto fetch = [&](int64_t tile) {
    if (tile < p.tiles) CopyAsync<8>(ring + tile % 2 * kTile + 2 * t, p.in + tile * kTile + 2 * t);
    CopyAsyncCommit();
  };
  float sums[2] = {};
  fetch(0);
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    fetch(tile + 1);
    if (kBug == CopyBug::kWaitOffByOne) {
      CopyAsyncWait<2>();
    } else if (kBug != CopyBug::kOneWarpDoesNotWait || t < 32) {
      CopyAsyncWait<1>();
    }
    if (kBug != CopyBug::kNoBarrier) SyncThreads();
    for (int i = 0; i < 2; ++i) sums[i] += ring[tile % 2 * kTile + (2 * t + i + 64) % kTile];
    if (kBug != CopyBug::kOverwritesEarly) SyncThreads();
  }
  CopyAsyncWait<0>();
  for (int i = 0; i < 2; ++i) p.out[2 * t + i] = sums[i];
}

template <CopyBug kBug>
std::string SumTilesVerdicts() {
  constexpr int64_t kTiles = 5;
  std::vector<float> in(kTiles * kTile), expected(kTile);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i * 7 % 31);
  for (size_t i = 0; i < kTile; ++i) {
    for (size_t tile = 0; tile < kTiles; ++tile) expected[i] += in[tile * kTile + (i + 64) % kTile];
  }
  Params params;
  params.in = in.data();
  params.tiles = kTiles;
  return Verdicts<&SumTiles<kBug>>(params, expected, kTile / 2, 2 * kTile * 4);
}

TEST(EmulatorAsync, CopyPipelineIsRightInEveryMode) {
  EXPECT_EQ(SumTilesVerdicts<CopyBug::kNone>(), "");
}
TEST(EmulatorCatches, CpAsyncWaitOffByOne) {
  EXPECT_THAT(SumTilesVerdicts<CopyBug::kWaitOffByOne>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, CpAsyncOneWarpDoesNotWait) {
  EXPECT_THAT(SumTilesVerdicts<CopyBug::kOneWarpDoesNotWait>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, CpAsyncWaitWithoutABarrier) {
  EXPECT_THAT(SumTilesVerdicts<CopyBug::kNoBarrier>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, CpAsyncIntoATileStillRead) {
  EXPECT_THAT(SumTilesVerdicts<CopyBug::kOverwritesEarly>(), HasSubstr("wrong result"));
}

__global__ void PartialCopy(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(16);
  const int t = static_cast<int>(threadIdx.x);
  if (t < 4) CopyAsync<16>(tile + 4 * t, p.in + 4 * t, t < 2 ? 16 : t == 2 ? 8 : 0);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  SyncThreads();
  if (t < 16) p.out[t] = tile[t];
}

TEST(EmulatorAsync, CpAsyncFillsWithZerosWhatIsNotValid) {
  alignas(16) float in[10];
  std::fill_n(in, 10, 3.0f);
  std::vector<float> expected(16, 0.0f);
  std::fill_n(expected.begin(), 10, 3.0f);
  Params params;
  params.in = in;
  EXPECT_EQ(Verdicts<&PartialCopy>(params, expected, 32, 64), "");
}

__global__ void MisalignedCopy(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(16);
  CopyAsync<16>(tile, p.in + 1);
  CopyAsyncWait<0>();
  p.out[0] = tile[0];
}

TEST(EmulatorCatches, MisalignedVectorAccessOfCpAsync) {
  alignas(16) static const float in[8] = {};
  Params params;
  params.in = in;
  EXPECT_THAT(Verdicts<&MisalignedCopy>(params, {0.0f}, 1, 64),
              AllOf(HasSubstr("misaligned"), HasSubstr("cuda_async_test.cc:")));
}

// cp.async that arrive at an mbarrier when they complete: nobody waits for their groups.
__global__ void CopyWithMbarrier(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(64);
  auto* full = shared.Take<Mbarrier>(1);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) MbarrierInit(full, 16);
  SyncThreads();
  if (t < 16) {
    CopyAsync<16>(tile + 4 * t, p.in + 4 * t);
    CopyAsyncArrive(full);
  } else {
    MbarrierWait(full, 0);
    for (int i = t - 16; i < 64; i += 16) p.out[i] = tile[i];
  }
}

TEST(EmulatorAsync, CpAsyncArrivesAtAnMbarrier) {
  alignas(16) float in[64];
  for (int i = 0; i < 64; ++i) in[i] = static_cast<float>(i);
  Params params;
  params.in = in;
  EXPECT_EQ(Verdicts<&CopyWithMbarrier>(params, std::vector<float>(in, in + 64), 32, 64 * 4 + 8),
            "");
}

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
__global__ void RingKernel(const Params p) {
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
  Params params;
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
__global__ void StoreKernel(const Params p) {
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
  Params params;
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

// --- ldmatrix

enum class MatrixBug { kNone, kPastItsTile, kNoSyncWarp, kMisaligned, kConflicts };

// A 16x16 tile of 16-bit elements, transposed by ldmatrix.trans; rows of 32 bytes, so that without
// a permutation rows 0 and 4 share banks.
template <MatrixBug kBug>
__global__ void TransposeTile(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint16_t>(16 * 16);
  const int lane = LaneId();
  const auto chunk = [](int row, int c) {
    return kBug == MatrixBug::kConflicts ? row * 2 + c : row * 2 + (c ^ (row / 4 % 2));
  };
  for (int i = 0; i < 8; ++i) {
    const int row = lane / 2, c = lane % 2;
    tile[chunk(row, c) * 8 + i] = ToF16(p.in[row * 16 + c * 8 + i]).bits;
  }
  if (kBug != MatrixBug::kNoSyncWarp) SyncWarp();
  int row = lane % 16;
  if (kBug == MatrixBug::kPastItsTile && lane == 31) row = 16;
  uint32_t x[4];
  const uint16_t* address = tile + chunk(row, lane / 16) * 8;
  if (kBug == MatrixBug::kMisaligned) ++address;
  LoadMatrices<4, true>(x, address);
  // Matrix j covers rows 8 (j % 2).. and columns 8 (j / 2)..
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 2; ++i) {
      const int r = lane % 4 * 2 + i + 8 * (j % 2), c = lane / 4 + 8 * (j / 2);
      p.out[c * 16 + r] = ToFloat(F16{static_cast<uint16_t>(x[j] >> (16 * i))});
    }
  }
}

template <MatrixBug kBug>
std::string TransposeVerdicts() {
  std::vector<float> in(256), expected(256);
  for (size_t i = 0; i < 256; ++i) {
    in[i] = static_cast<float>(i);
    expected[i % 16 * 16 + i / 16] = in[i];
  }
  Params params;
  params.in = in.data();
  return Verdicts<&TransposeTile<kBug>>(params, expected, 32, 512);
}

template <MatrixBug kBug>
int64_t TransposeConflicts() {
  std::vector<float> in(256), out(256);
  Params params;
  params.in = in.data();
  params.out = out.data();
  EmulatorStatistics statistics;
  EXPECT_TRUE(RunOnce<&TransposeTile<kBug>>(params, 32, 512, "fifo", &statistics).ok());
  EXPECT_EQ(statistics.matrix_moves, 4);
  return statistics.bank_conflicts;
}

TEST(EmulatorAsync, LdmatrixIsRightInEveryMode) {
  EXPECT_EQ(TransposeVerdicts<MatrixBug::kNone>(), "");
  EXPECT_EQ(TransposeVerdicts<MatrixBug::kConflicts>(), "");
}
TEST(EmulatorAsync, BankConflictsAreCounted) {
  EXPECT_EQ(TransposeConflicts<MatrixBug::kNone>(), 0);
  EXPECT_EQ(TransposeConflicts<MatrixBug::kConflicts>(), 4);
}
TEST(EmulatorCatches, LdmatrixPastItsTile) {
  EXPECT_THAT(TransposeVerdicts<MatrixBug::kPastItsTile>(), HasSubstr("a row beyond its piece"));
}
TEST(EmulatorCatches, LdmatrixOfAMisalignedRow) {
  EXPECT_THAT(TransposeVerdicts<MatrixBug::kMisaligned>(), HasSubstr("misaligned"));
}

// --- wgmma

enum class ProductBug {
  kNone,
  kNoFence,
  kNoProxyFence,
  kOneWarpNoProxyFence,
  kNoWait,
  kNoCommit,
  kReadsTooEarly,
  kWritesTooEarly,
  kOverwritesOperand,
  kOneWarpElsewhere,
};

// out[64 x 32] = 2 a[64 x 16] b[32 x 16]^T: once with a from shared memory, once from registers.
template <ProductBug kBug>
__global__ void ProductKernel(const Params p) {
  constexpr int kN = 32;
  SharedCarver shared;
  auto* a = shared.Take<uint16_t>(64 * 16, 1024);
  auto* b = shared.Take<uint16_t>(kN * 16, 1024);
  const int t = static_cast<int>(threadIdx.x);
  // K-major, swizzled by 32 bytes: a row is its two chunks.
  const auto at = [](int row, int k) { return row * 16 + ((k / 8) ^ (row / 4 % 2)) * 8 + k % 8; };
  for (int i = t; i < 64 * 16; i += 128) a[at(i / 16, i % 16)] = ToF16(p.in[i]).bits;
  for (int i = t; i < kN * 16; i += 128) b[at(i / 16, i % 16)] = ToF16(p.in[1024 + i]).bits;
  if (kBug != ProductBug::kNoProxyFence &&
      (kBug != ProductBug::kOneWarpNoProxyFence || t / 32 != 2)) {
    FenceProxyAsync();
  }
  SyncThreads();
  uint32_t fragment[4];
  for (int r = 0; r < 4; ++r) {
    const int row = t / 32 * 16 + t % 32 / 4 + r % 2 * 8, k = t % 4 * 2 + r / 2 * 8;
    fragment[r] = RoundPair<F16>(p.in[row * 16 + k], p.in[row * 16 + k + 1]);
  }
  const MatrixDescriptor da = DescribeMatrix(a, Swizzle::k32, 16, 256);
  const MatrixDescriptor db = DescribeMatrix(b, Swizzle::k32, 16, 256);
  float d[kN / 2];
  if (kBug != ProductBug::kNoFence) WarpgroupFence();
  if (kBug == ProductBug::kOneWarpElsewhere && t / 32 == 1) {
    WarpgroupMultiply<F16, kN>(d, da, db, false);
  } else {
    WarpgroupMultiply<F16, kN>(d, da, db, false);
  }
  WarpgroupMultiply<F16, kN>(d, fragment, db, true);
  if (kBug != ProductBug::kNoCommit) WarpgroupCommit();
  if (kBug == ProductBug::kWritesTooEarly) d[3] = 1.0f;
  if (kBug == ProductBug::kOverwritesOperand) {
    b[at(0, 0)] = 0;
    FenceProxyAsync();
  }
  const float early = d[0];
  if (kBug != ProductBug::kNoWait) WarpgroupWait<0>(d);
  if (kBug == ProductBug::kReadsTooEarly) d[0] = early;
  for (int i = 0; i < kN / 2; ++i) {
    const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + t % 4 * 2 + i % 2;
    p.out[row * kN + column] = d[i];
  }
}

template <ProductBug kBug>
std::string ProductVerdicts() {
  std::vector<float> in(96 * 16), expected(64 * 32);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i * 29 % 23) * 0.125f - 1.0f;
  for (size_t m = 0; m < 64; ++m) {
    for (size_t n = 0; n < 32; ++n) {
      for (size_t k = 0; k < 16; ++k) {
        expected[m * 32 + n] += 2.0f * in[m * 16 + k] * in[1024 + n * 16 + k];
      }
    }
  }
  Params params;
  params.in = in.data();
  return Verdicts<&ProductKernel<kBug>>(params, expected, 128, 64 * 32 + 32 * 32);
}

TEST(EmulatorAsync, WgmmaIsRightInEveryMode) {
  EXPECT_EQ(ProductVerdicts<ProductBug::kNone>(), "");
}
TEST(EmulatorCatches, MissingWgmmaFence) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kNoFence>(), HasSubstr("no wgmma.fence since"));
}
TEST(EmulatorCatches, WgmmaWithoutProxyFence) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kNoProxyFence>(), HasSubstr("without fence.proxy.async"));
}
TEST(EmulatorCatches, WgmmaWithoutProxyFenceOfOneWarp) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kOneWarpNoProxyFence>(),
              HasSubstr("without fence.proxy.async"));
}
TEST(EmulatorCatches, MissingWgmmaWait) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kNoWait>(), HasSubstr("ends before it has waited"));
}
TEST(EmulatorCatches, MissingWgmmaCommit) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kNoCommit>(), HasSubstr("since the last wgmma.commit"));
}
TEST(EmulatorCatches, AccumulatorsReadTooEarly) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kReadsTooEarly>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, AccumulatorsWrittenTooEarly) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kWritesTooEarly>(),
              HasSubstr("accumulators were written"));
}
TEST(EmulatorCatches, OperandOfWgmmaOverwritten) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kOverwritesOperand>(), HasSubstr("wrong result"));
}
TEST(EmulatorCatches, WarpsOfAWarpgroupAtDifferentWgmma) {
  EXPECT_THAT(ProductVerdicts<ProductBug::kOneWarpElsewhere>(), HasSubstr("divergent warpgroup"));
}

}  // namespace
}  // namespace tandem::cuda::emulated
