// The emulator runs correct kernels without a report, in every order of threads, and catches
// planted bugs: each is named after what it does wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/warp.h"
#include "cuda/emulator/launch.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {
namespace {

using emulator::EmulatorOptions;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Params {
  float* out = nullptr;
  const float* in = nullptr;
  int64_t n = 0;
};

template <auto kKernel>
absl::Status RunOnce(const Params& params, int64_t blocks, int64_t threads, int64_t shared_bytes,
                     const std::string& schedule) {
  const auto options = EmulatorOptions::Parse(schedule);
  EXPECT_TRUE(options.ok()) << options.status();
  LaunchConfig config;
  config.grid.x = blocks;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  return emulator::RunKernel(MakeKernelFunction<kKernel>("planted"), config, &params, *options);
}

// Also a list of orders in which a bug that one of them hides may show.
std::vector<std::string> Schedules() {
  std::vector<std::string> all = {"fifo", "lifo", "reverse"};
  for (int seed = 1; seed <= 20; ++seed) all.push_back("random:" + std::to_string(seed));
  return all;
}

// The first report over all schedules; empty if there is none.
template <auto kKernel>
std::string FirstReport(int64_t threads, int64_t shared_bytes) {
  std::vector<float> in(1024, 1.0f), out(1024);
  const Params params = {out.data(), in.data(), 1024};
  for (const std::string& schedule : Schedules()) {
    const absl::Status status = RunOnce<kKernel>(params, 2, threads, shared_bytes, schedule);
    if (!status.ok()) return std::string(status.message());
  }
  return "";
}

// out[block] = sum of in[block * n .. + n], and every element shifted by one through shared memory.
__global__ void SumAndRotate(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(blockDim.x);
  auto* scratch = shared.Take<float>(kWarpSize);
  const int64_t base = int64_t{blockIdx.x} * blockDim.x;
  tile[threadIdx.x] = p.in[base + threadIdx.x];
  SyncThreads();
  const float next = tile[(threadIdx.x + 1) % blockDim.x];
  const float sum = BlockSum(next, scratch);
  p.out[base + threadIdx.x] = sum + next;
}

TEST(Emulator, CorrectKernelsGiveTheSameResultInEveryOrder) {
  constexpr int64_t kThreads = 256, kBlocks = 4;
  std::vector<float> in(kThreads * kBlocks), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 7);
  for (const std::string& schedule : Schedules()) {
    std::fill(out.begin(), out.end(), -1.0f);
    const absl::Status status = RunOnce<&SumAndRotate>({out.data(), in.data(), 0}, kBlocks,
                                                       kThreads, kThreads * 4 + 32 * 4, schedule);
    ASSERT_TRUE(status.ok()) << status;
    for (int64_t b = 0; b < kBlocks; ++b) {
      float sum = 0.0f;
      for (int64_t i = 0; i < kThreads; ++i) sum += in[b * kThreads + i];
      for (int64_t i = 0; i < kThreads; ++i) {
        ASSERT_EQ(out[b * kThreads + i], sum + in[b * kThreads + (i + 1) % kThreads]) << schedule;
      }
    }
  }
}

__global__ void WarpExchange(const Params p) {
  const int lane = LaneId();
  float value = static_cast<float>(lane);
  value += 100.0f * ShuffleXor(value, 3);  // lane ^ 3
  const float up = ShuffleUp(static_cast<float>(lane), 2);
  const uint32_t odd = Ballot(lane % 2 == 1);
  const bool any = Any(lane == 5), all = All(lane < 32), none = Any(lane > 31);
  p.out[threadIdx.x] =
      value + 10000.0f * up + (odd == 0xAAAAAAAAu && any && all && !none ? 0 : 1e9f);
}

TEST(Emulator, WarpExchangesFollowTheirDefinitions) {
  std::vector<float> out(64);
  ASSERT_TRUE(RunOnce<&WarpExchange>({out.data(), nullptr, 0}, 1, 64, 0, "lifo").ok());
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32;
    EXPECT_EQ(out[static_cast<size_t>(i)],
              static_cast<float>(lane) + 100.0f * static_cast<float>(lane ^ 3) +
                  10000.0f * static_cast<float>(lane < 2 ? lane : lane - 2));
  }
}

// --- planted bugs

__global__ void EarlyExit(const Params p) {
  if (threadIdx.x == 5) return;
  SyncThreads();
  p.out[threadIdx.x] = 1.0f;
}

TEST(EmulatorCatches, EarlyExitBeforeABarrier) {
  EXPECT_THAT(FirstReport<&EarlyExit>(64, 0),
              AllOf(HasSubstr("deadlock"), HasSubstr("threads 0..4 waits for barrier 0"),
                    HasSubstr("thread 5 has exited"), HasSubstr("cuda_emulator_test.cc:")));
}

__global__ void DivergentBarrier(const Params p) {
  if (threadIdx.x < 32) {
    SyncThreads();
  } else {
    SyncThreads();
  }
  p.out[threadIdx.x] = 1.0f;
}

TEST(EmulatorCatches, BarrierInBothBranches) {
  EXPECT_THAT(FirstReport<&DivergentBarrier>(64, 0), HasSubstr("divergent barrier"));
}

__global__ void HalfAWarp(const Params p) {
  float value = p.in[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = ShuffleXor(value, 1);
  p.out[threadIdx.x] = value;
}

TEST(EmulatorCatches, HalfAWarpInAFullMaskShuffle) {
  EXPECT_THAT(FirstReport<&HalfAWarp>(64, 0), HasSubstr("ShuffleXor"));
}

__global__ void TwoShuffles(const Params p) {
  float value = p.in[threadIdx.x];
  if (threadIdx.x % 2 == 0) {
    value = ShuffleXor(value, 1);
  } else {
    value = ShuffleDown(value, 1);
  }
  p.out[threadIdx.x] = value;
}

TEST(EmulatorCatches, DifferentShufflesInOneWarp) {
  EXPECT_THAT(FirstReport<&TwoShuffles>(32, 0), HasSubstr("divergent warp"));
}

__global__ void OutsideItsMask(const Params p) {
  p.out[threadIdx.x] = ShuffleXor(p.in[threadIdx.x], 1, 0x0000FFFFu);
}

TEST(EmulatorCatches, LaneOutsideItsOwnMask) {
  EXPECT_THAT(FirstReport<&OutsideItsMask>(32, 0), HasSubstr("not in its own mask"));
}

__global__ void TakesTooMuch(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(512);
  tile[threadIdx.x] = 1.0f;
  p.out[threadIdx.x] = tile[threadIdx.x];
}

TEST(EmulatorCatches, MoreSharedMemoryThanLaunched) {
  EXPECT_THAT(FirstReport<&TakesTooMuch>(32, 1024),
              AllOf(HasSubstr("2048"), HasSubstr("launched with 1024")));
}

__global__ void TakesNothing(const Params p) {
  SharedCarver shared;
  p.out[threadIdx.x] = shared.Take<float>(0) == nullptr ? 0.0f : 1.0f;
}

TEST(Emulator, NoSharedMemoryInNoPieces) {
  std::vector<float> out(32);
  EXPECT_TRUE(RunOnce<&TakesNothing>({out.data(), nullptr, 0}, 1, 32, 0, "fifo").ok());
}

// Read back by the plain build only: under AddressSanitizer the write itself stops the program.
#if !defined(__SANITIZE_ADDRESS__)
__global__ void WritesBehindItsTile(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(32);
  volatile float* end = tile + 32;
  *end = 1.0f;
  p.out[threadIdx.x] = tile[0];
}

TEST(EmulatorCatches, WriteBehindATileOfSharedMemory) {
  EXPECT_THAT(FirstReport<&WritesBehindItsTile>(32, 128), HasSubstr("beyond shared memory"));
}
#endif

// The neighbour's element is read before it is sure to have been written: some order shows the NaN
// that shared memory starts with.
__global__ void MissingBarrier(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(blockDim.x);
  tile[threadIdx.x] = 1.0f;
  p.out[int64_t{blockIdx.x} * blockDim.x + threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
}

TEST(EmulatorCatches, MissingBarrierShowsAsNaN) {
  std::vector<float> out(128);
  bool seen = false;
  for (const std::string& schedule : Schedules()) {
    ASSERT_TRUE(RunOnce<&MissingBarrier>({out.data(), nullptr, 0}, 2, 64, 256, schedule).ok());
    for (const float x : out) seen = seen || x != x;
  }
  EXPECT_TRUE(seen);
}

__global__ void SpinsForever(const Params p) {
  while (p.in[0] != 2.0f) emulator::Yield(Site::Here());
  p.out[0] = 1.0f;
}

TEST(EmulatorCatches, ALoopThatNeverEnds) {
  std::vector<float> in(1), out(1);
  const Params params = {out.data(), in.data(), 0};
  EmulatorOptions options;
  options.max_yields = 1000;
  const absl::Status status = emulator::RunKernel(MakeKernelFunction<&SpinsForever>("spins"),
                                                  LaunchConfig(), &params, options);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("hanging"), HasSubstr("kernel spins")));
}

__global__ void SpinsWithoutWaiting(const Params p) {
  SyncThreads();
  const volatile float* in = p.in;
  if (blockIdx.x == 1 && threadIdx.x == 3) {
    while (in[0] != 2.0f) {
    }
  }
  SyncThreads();
  if (threadIdx.x == 0) p.out[blockIdx.x] = 1.0f;
}

TEST(EmulatorCatches, ALoopThatWaitsWithoutYielding) {
  std::vector<float> in(1), out(3);
  const Params params = {out.data(), in.data(), 0};
  LaunchConfig config;
  config.grid.x = 3;
  config.block.x = 64;
  EmulatorOptions options;
  options.stuck_seconds = 0.05;
  const KernelFunction spins = MakeKernelFunction<&SpinsWithoutWaiting>("spins");
  if (kThreadSanitized) {  // whose runtime cannot be left in the middle
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT((void)emulator::RunKernel(spins, config, &params, options),
                testing::ExitedWithCode(EXIT_FAILURE),
                "kernel spins .emulated., block .1, 0, 0.: stuck: thread .3, 0, 0.");
    return;
  }
  for (int run = 0; run < 3; ++run) {  // what is left behind does not disturb the next launch
    const absl::Status status = emulator::RunKernel(spins, config, &params, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(
        std::string(status.message()),
        AllOf(HasSubstr("kernel spins"), HasSubstr("block [1, 0, 0]: stuck: thread [3, 0, 0]"),
              HasSubstr("cuda_emulator_test.cc:")));
  }
  in[0] = 2.0f;
  EXPECT_TRUE(emulator::RunKernel(spins, config, &params, options).ok());
}

// Long work that waits now and then is none: the time starts anew with every wait.
__global__ void WorksLongBetweenBarriers(const Params p) {
  for (int i = 0; i < 20; ++i) {
    volatile float sum = 0.0f;
    for (int j = 0; j < 200'000; ++j) sum = sum + p.in[0];
    SyncThreads();
  }
  p.out[threadIdx.x] = 1.0f;
}

TEST(Emulator, LongWorkThatWaitsIsNotStuck) {
  std::vector<float> in(1), out(32);
  const Params params = {out.data(), in.data(), 0};
  LaunchConfig config;
  config.block.x = 32;
  EmulatorOptions options;
  options.stuck_seconds = 0.05;
  const absl::Status status = emulator::RunKernel(
      MakeKernelFunction<&WorksLongBetweenBarriers>("works"), config, &params, options);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Emulator, SchedulesAreParsed) {
  EXPECT_EQ(EmulatorOptions::Parse("random:42")->seed, 42u);
  for (const char* bad : {"", "random", "random:", "random:x", "FIFO"}) {
    EXPECT_EQ(EmulatorOptions::Parse(bad).status().code(), absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

}  // namespace
}  // namespace tandem::cuda::emulated
