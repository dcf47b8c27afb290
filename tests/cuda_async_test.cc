// Asynchronous copies by threads and tensor cores in the emulator: correct kernels give the right
// result and no report in every order of threads and completions; each planted bug is caught. Bulk
// copies: cuda_bulk_copy_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/device/bulk_copy.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/matrix.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/warp.h"
#include "cuda/device/warpgroup.h"
#include "tests/kernel_verdicts.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {
namespace {

using emulator::EmulatorStatistics;
using ::testing::AllOf;
using ::testing::HasSubstr;

// --- cp.async

constexpr int kTile = 128;  // floats
enum class CopyBug { kNone, kWaitOffByOne, kOneWarpDoesNotWait, kNoBarrier, kOverwritesEarly };

// out[i] = sum over tiles of in[tile * kTile + (i + 64) % kTile], through a ring of two tiles.
template <CopyBug kBug>
__global__ void SumTiles(const AsyncParams p) {
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
  AsyncParams params;
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

__global__ void PartialCopy(const AsyncParams p) {
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
  AsyncParams params;
  params.in = in;
  EXPECT_EQ(Verdicts<&PartialCopy>(params, expected, 32, 64), "");
}

__global__ void MisalignedCopy(const AsyncParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(16);
  CopyAsync<16>(tile, p.in + 1);
  CopyAsyncWait<0>();
  p.out[0] = tile[0];
}

TEST(EmulatorCatches, MisalignedVectorAccessOfCpAsync) {
  alignas(16) static const float in[8] = {};
  AsyncParams params;
  params.in = in;
  EXPECT_THAT(Verdicts<&MisalignedCopy>(params, {0.0f}, 1, 64),
              AllOf(HasSubstr("misaligned"), HasSubstr("cuda_async_test.cc:")));
}

// cp.async that arrive at an mbarrier when they complete: nobody waits for their groups.
__global__ void CopyWithMbarrier(const AsyncParams p) {
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
  AsyncParams params;
  params.in = in;
  EXPECT_EQ(Verdicts<&CopyWithMbarrier>(params, std::vector<float>(in, in + 64), 32, 64 * 4 + 8),
            "");
}

// --- ldmatrix

enum class MatrixBug { kNone, kPastItsTile, kNoSyncWarp, kMisaligned, kConflicts };

// A 16x16 tile of 16-bit elements, transposed by ldmatrix.trans; rows of 32 bytes, so that without
// a permutation rows 0 and 4 share banks.
template <MatrixBug kBug>
__global__ void TransposeTile(const AsyncParams p) {
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
  AsyncParams params;
  params.in = in.data();
  return Verdicts<&TransposeTile<kBug>>(params, expected, 32, 512);
}

template <MatrixBug kBug>
int64_t TransposeConflicts() {
  std::vector<float> in(256), out(256);
  AsyncParams params;
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
__global__ void ProductKernel(const AsyncParams p) {
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
  AsyncParams params;
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
