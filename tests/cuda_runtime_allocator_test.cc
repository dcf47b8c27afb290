// Device memory and streams of the CUDA backend, on the emulated device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/caching_allocator.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

using ::testing::HasSubstr;

constexpr Device kDevice = {DeviceKind::kCuda, kEmulatedDevice};

class CachingAllocatorTest : public testing::Test {
 protected:
  std::unique_ptr<EmulatedRuntime> runtime_ = MakeEmulatedRuntime({.memory_bytes = 1 << 20});
  UniqueStream stream_ = *MakeStream(*runtime_, kEmulatedDevice);
};

TEST_F(CachingAllocatorTest, ReleasedBlocksAreHandedOutAgain) {
  CachingAllocator allocator(*runtime_, kDevice, INT64_MAX);
  ASSERT_TRUE(allocator.AddStream(stream_.get()).ok());
  void* first = nullptr;
  {
    const auto buffer = *allocator.Allocate(5000);
    first = buffer->data();
    EXPECT_EQ(allocator.bytes_in_use(), 5000);
  }
  EXPECT_EQ(allocator.bytes_in_use(), 0);
  EXPECT_EQ(allocator.stats().kept_blocks, 1);
  {
    const auto smaller = *allocator.Allocate(4500);
    EXPECT_EQ(smaller->data(), first);
    const auto second = *allocator.Allocate(4500);
    EXPECT_NE(second->data(), first);
    const auto none = *allocator.Allocate(0);
    EXPECT_EQ(none->data(), nullptr);
  }
  const AllocatorStats stats = allocator.stats();
  EXPECT_EQ(stats.reused, 1);
  EXPECT_EQ(stats.allocated, 2);
  EXPECT_EQ(stats.peak_bytes, 9000);
  EXPECT_EQ(stats.kept_blocks, 2);
  EXPECT_GE(stats.held_bytes, 9500);
  EXPECT_LE(stats.held_bytes, 9500 * 9 / 8 + 1024);
  EXPECT_EQ(runtime_->stats().allocated_bytes, stats.held_bytes);
  ASSERT_TRUE(allocator.Flush().ok());
  EXPECT_EQ(allocator.stats().held_bytes, 0);
  EXPECT_EQ(runtime_->stats().allocations, 0);
}

TEST_F(CachingAllocatorTest, KeptBlocksAreGivenBackBeforeMemoryRunsOut) {
  CachingAllocator allocator(*runtime_, kDevice, INT64_MAX);
  ASSERT_TRUE(allocator.AddStream(stream_.get()).ok());
  { const auto most = *allocator.Allocate(900 << 10); }
  const auto other = allocator.Allocate(500 << 10);  // fits only without the kept block
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(allocator.stats().flushes, 1);
  const auto none = allocator.Allocate(900 << 10);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(none.status()), HasSubstr("921600 bytes on cuda:emulated"));
  EXPECT_TRUE(allocator.Allocate(400 << 10).ok()) << "still usable";
}

TEST_F(CachingAllocatorTest, LimitHoldsForWhatIsKeptToo) {
  CachingAllocator allocator(*runtime_, kDevice, 64 << 10);
  ASSERT_TRUE(allocator.AddStream(stream_.get()).ok());
  { const auto kept = *allocator.Allocate(40 << 10); }
  EXPECT_TRUE(allocator.Allocate(60 << 10).ok());
  EXPECT_LE(runtime_->stats().allocated_bytes, 64 << 10);
  const auto none = allocator.Allocate(65 << 10);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(none.status()), HasSubstr("limit of 65536"));
  EXPECT_EQ(allocator.Allocate(INT64_MAX).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(CachingAllocatorTest, LostDeviceIsNotOutOfMemory) {
  CachingAllocator allocator(*runtime_, kDevice, INT64_MAX);
  runtime_->Inject({.kind = Fault::Kind::kDeviceLost});
  EXPECT_EQ(allocator.Allocate(512).status().code(), absl::StatusCode::kUnavailable);
  runtime_->Heal();
}

// A block that one stream still works on must not be handed to work of another.
TEST_F(CachingAllocatorTest, BlocksInUseByAnotherStreamWait) {
  CachingAllocator allocator(*runtime_, kDevice, INT64_MAX);
  const UniqueStream other = *MakeStream(*runtime_, kEmulatedDevice);
  ASSERT_TRUE(allocator.AddStream(stream_.get()).ok());
  ASSERT_TRUE(allocator.AddStream(other.get()).ok());
  std::mutex gate;
  gate.lock();
  const auto wait = [](void* data) {
    static_cast<std::mutex*>(data)->lock();
    static_cast<std::mutex*>(data)->unlock();
  };
  void* busy = nullptr;
  {
    const auto buffer = *allocator.Allocate(512);
    busy = buffer->data();
    ASSERT_TRUE(runtime_->HostFunction(stream_.get(), wait, &gate).ok());
    ASSERT_TRUE(runtime_->Fill(stream_.get(), busy, 1, 512).ok());
  }
  {
    const auto fresh = *allocator.Allocate(512);
    EXPECT_NE(fresh->data(), busy);
  }
  gate.unlock();
  ASSERT_TRUE(runtime_->Synchronize(stream_.get()).ok());
  ASSERT_TRUE(runtime_->Synchronize(other.get()).ok());
  const auto a = *allocator.Allocate(512), b = *allocator.Allocate(512);
  EXPECT_TRUE(a->data() == busy || b->data() == busy);
  allocator.RemoveStream(other.get());
}

class CudaBackendTest : public testing::Test {
 protected:
  void SetUp() override {
    auto runtime = MakeEmulatedRuntime({.memory_bytes = 1 << 20});
    runtime_ = runtime.get();
    backend_ = *MakeCudaBackend(std::move(runtime), {.device = kEmulatedDevice});
  }
  EmulatedRuntime* runtime_ = nullptr;
  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaBackendTest, DescribesItself) {
  EXPECT_EQ(backend_->device(), kDevice);
  EXPECT_THAT(backend_->description(), HasSubstr("emulated on the CPU"));
  EXPECT_THAT(backend_->profile_key(), HasSubstr("cuda:emulated"));
  EXPECT_EQ(backend_->memory()->total_bytes, 1 << 20);
}

TEST_F(CudaBackendTest, StreamsAndEventsAreReleased) {
  {
    const auto stream = *backend_->CreateStream(), second = *backend_->CreateStream();
    const auto event = *stream->Record();
    EXPECT_TRUE(second->Wait(*event).ok());
    EXPECT_TRUE(event->Synchronize().ok());
    EXPECT_EQ(*event->SecondsSince(*event), 0.0);
    const auto buffer = *backend_->allocator().Allocate(100);
    const auto pinned = *backend_->pinned_allocator()->Allocate(100);
    EXPECT_EQ(pinned->device().kind, DeviceKind::kCpu);
    EXPECT_EQ(runtime_->stats().pinned, 1);
    EXPECT_EQ(runtime_->stats().streams, 2);
  }
  EXPECT_EQ(runtime_->stats().events, 2) << "of the kept block, one per stream";
  EXPECT_EQ(runtime_->stats().streams, 0);
  EXPECT_EQ(runtime_->stats().pinned, 0);
}

TEST_F(CudaBackendTest, EventsOfAnotherDeviceAreRefused) {
  auto other = *MakeCudaBackend({.device = kEmulatedDevice});
  const auto stream = *backend_->CreateStream(), foreign = *other->CreateStream();
  const auto event = *foreign->Record();
  EXPECT_THAT(Message(stream->Wait(*event)), HasSubstr("an event of this CUDA device"));
  const auto own = *stream->Record();
  EXPECT_FALSE(own->SecondsSince(*event).ok());
}

TEST_F(CudaBackendTest, LaunchLimits) {
  const auto stream = *backend_->CreateStream();
  auto& cuda = static_cast<CudaStream&>(*stream);
  struct Params {
    int* counter;
  };
  KernelFunction function;
  function.name = "toy";
  function.params_bytes = sizeof(Params);
  function.emulated = [](const void* params) {
    ++std::atomic_ref(*static_cast<const Params*>(params)->counter);
  };
  int count = 0;
  const Params params = {&count};
  const auto message = [&](const LaunchConfig& config) {
    return Message(cuda.Launch(function, config, params));
  };
  EXPECT_THAT(message({.grid = {1, 65536, 1}}), HasSubstr("[1, 65536, 1]"));
  EXPECT_THAT(message({.grid = {1, 1, 65536}}), HasSubstr("65535"));
  EXPECT_THAT(message({.grid = {int64_t{1} << 31, 1, 1}}), HasSubstr("2147483647"));
  EXPECT_THAT(message({.grid = {-1, 1, 1}}), HasSubstr("-1"));
  EXPECT_THAT(message({.block = {1025, 1, 1}}), HasSubstr("1024"));
  EXPECT_THAT(message({.block = {32, 33, 1}}), HasSubstr("[32, 33, 1]"));
  EXPECT_THAT(message({.block = {1, 1, 65}}), HasSubstr("[1, 1, 65]"));
  EXPECT_THAT(message({.block = {0, 1, 1}}), HasSubstr("[0, 1, 1]"));
  EXPECT_THAT(message({.shared_bytes = (227 << 10) + 1}), HasSubstr("shared memory"));
  EXPECT_THAT(message({.shared_bytes = -1}), HasSubstr("-1"));
  EXPECT_EQ(message({.grid = {0, 1, 1}}), "");  // nothing to do
  ASSERT_TRUE(stream->Synchronize().ok());
  EXPECT_EQ(count, 0);
  EXPECT_EQ(message({.grid = {3, 1, 1}}), "");
  ASSERT_TRUE(stream->Synchronize().ok());
  EXPECT_EQ(count, 3);
  EXPECT_FALSE(cuda.Launch(function, {}, int64_t{0} + 1 == 1 ? 'x' : 'y').ok()) << "another size";
  EXPECT_FALSE(cuda.Launch(KernelFunction(), {}, params).ok());
}

TEST(MakeCudaBackend, BadOptionsNameWhatIsWrong) {
  const auto message = [](const CudaOptions& options) {
    return Message(MakeCudaBackend(options).status());
  };
  EXPECT_THAT(message({.device = kEmulatedDevice, .memory_limit = -1}), HasSubstr("memory_limit"));
  EXPECT_THAT(message({.device = kEmulatedDevice, .emulated_schedule = "sideways"}),
              HasSubstr("sideways"));
  EXPECT_NE(message({.device = 99}), "");
  const auto old = MakeCudaBackend(
      MakeEmulatedRuntime({.compute_capability_major = 7, .compute_capability_minor = 5}),
      {.device = kEmulatedDevice});
  EXPECT_EQ(old.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(old.status()), HasSubstr("compute capability 7.5, expected at least 8.0"));
  const auto absent = MakeCudaBackend(MakeEmulatedRuntime(), {.device = 3});
  EXPECT_THAT(Message(absent.status()), HasSubstr("there is no cuda:3"));
}

}  // namespace
}  // namespace tandem::cuda
