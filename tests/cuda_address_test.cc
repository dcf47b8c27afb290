// Accesses of kernels outside their memory: AddressSanitizer sees them, because every allocation of
// the emulated device ends where the tensor ends, and so does every piece of shared memory. In its
// build only; each access ends the program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "cuda/device/bulk_copy.h"
#include "cuda/device/memory.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/emulator/launch.h"
#include "cuda/runtime/emulated_runtime.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {
namespace {

constexpr int64_t kFloats = 100;

struct Params {
  float* out = nullptr;
  const float* in = nullptr;
};

// Runs it on two tensors of kFloats elements; the first is freed before if it is not to live.
template <auto kKernel>
absl::Status RunOn(bool live = true) {
  const std::unique_ptr<EmulatedRuntime> runtime = MakeEmulatedRuntime();
  const auto allocate = [&](int64_t bytes) {
    return runtime->Allocate(kEmulatedDevice, bytes).value();
  };
  const auto free = [&](void* data) { EXPECT_TRUE(runtime->Free(kEmulatedDevice, data).ok()); };
  void* const before = allocate(4096);  // so that there is memory on both sides
  void* const in = allocate(kFloats * 4);
  void* const out = allocate(kFloats * 4);
  void* const behind = allocate(4096);
  if (!live) free(in);
  const Params params = {static_cast<float*>(out), static_cast<const float*>(in)};
  LaunchConfig config;
  config.block.x = 128;
  config.shared_bytes = 1024;
  const absl::Status status =
      emulator::RunKernel(MakeKernelFunction<kKernel>("planted"), config, &params);
  if (live) free(in);
  for (void* data : {before, out, behind}) free(data);
  return status;
}

__global__ void CopiesInside(const Params p) {
  if (threadIdx.x < kFloats) p.out[threadIdx.x] = p.in[threadIdx.x];
}
__global__ void ReadsBeyondTheEnd(const Params p) {
  const float x = p.in[threadIdx.x];
  if (threadIdx.x < kFloats) p.out[threadIdx.x] = x;
}
__global__ void ReadsBeforeTheStart(const Params p) {
  if (threadIdx.x < kFloats) p.out[threadIdx.x] = p.in[static_cast<int>(threadIdx.x) - 1];
}
__global__ void WritesBeyondTheEnd(const Params p) { p.out[threadIdx.x] = 1.0f; }
__global__ void WritesBeyondSharedMemory(const Params p) {
  SharedCarver shared;
  volatile float* tile = shared.Take<float>(64);
  if (threadIdx.x <= 64) tile[threadIdx.x] = 1.0f;
  SyncThreads();
  if (threadIdx.x < 64) p.out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void ReadsWhatIsUnderWay(const Params p) {
  SharedCarver shared;
  auto* tile = shared.Take<float>(64, 128);
  auto* full = shared.Take<Mbarrier>(1);
  if (threadIdx.x == 0) {
    MbarrierInit(full, 1);
    FenceMbarrierInit();
    MbarrierArriveExpect(full, 256);
    BulkLoad(tile, p.in, 256, full);
  }
  SyncThreads();
  const float x = tile[threadIdx.x % 64];
  MbarrierWait(full, 0);
  if (threadIdx.x < 64) p.out[threadIdx.x] = x;
}

class EmulatorAddresses : public testing::Test {
 protected:
  void SetUp() override {
    if (!kAddressSanitized) GTEST_SKIP() << "needs AddressSanitizer";
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
};

TEST_F(EmulatorAddresses, InsideIsFine) {
  const absl::Status status = RunOn<&CopiesInside>();
  EXPECT_TRUE(status.ok()) << status;
}
TEST_F(EmulatorAddresses, ReadBeyondTheEndOfATensor) {
  EXPECT_DEATH((void)RunOn<&ReadsBeyondTheEnd>(), "AddressSanitizer.*READ of size 4");
}
TEST_F(EmulatorAddresses, ReadBeforeTheStartOfATensor) {
  EXPECT_DEATH((void)RunOn<&ReadsBeforeTheStart>(), "AddressSanitizer.*READ of size 4");
}
TEST_F(EmulatorAddresses, WriteBeyondTheEndOfATensor) {
  EXPECT_DEATH((void)RunOn<&WritesBeyondTheEnd>(), "AddressSanitizer.*WRITE of size 4");
}
TEST_F(EmulatorAddresses, UseOfFreedMemory) {
  EXPECT_DEATH((void)RunOn<&CopiesInside>(/*live=*/false), "AddressSanitizer.*READ of size 4");
}
TEST_F(EmulatorAddresses, WriteBeyondAPieceOfSharedMemory) {
  EXPECT_DEATH((void)RunOn<&WritesBeyondSharedMemory>(), "AddressSanitizer.*WRITE of size 4");
}
TEST_F(EmulatorAddresses, ReadOfSharedMemoryThatACopyIsWriting) {
  EXPECT_DEATH((void)RunOn<&ReadsWhatIsUnderWay>(), "AddressSanitizer.*READ of size 4");
}

}  // namespace
}  // namespace tandem::cuda::emulated
