// The emulated device as a runtime: order of work, addresses, faults, leaks, graphs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "core/status.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/runtime/handles.h"

namespace tandem::cuda {
namespace {

using ::testing::HasSubstr;

constexpr int kDevice = kEmulatedDevice;

class EmulatedRuntimeTest : public testing::Test {
 protected:
  void Make(const EmulatedRuntimeOptions& options = {}) {
    stream_ = {};  // of the runtime before
    runtime_ = MakeEmulatedRuntime(options);
    stream_ = *MakeStream(*runtime_, kDevice);
  }
  void SetUp() override { Make(); }
  int* AllocateInts(int64_t count) {
    return static_cast<int*>(*runtime_->Allocate(kDevice, count * 4));
  }
  int* PinnedInts(int64_t count) { return static_cast<int*>(*runtime_->AllocatePinned(count * 4)); }

  std::unique_ptr<EmulatedRuntime> runtime_;
  UniqueStream stream_;
};

TEST_F(EmulatedRuntimeTest, CopiesThereAndBack) {
  std::vector<int> in(1000), out(1000);
  std::iota(in.begin(), in.end(), 7);
  int* device = AllocateInts(1000);
  ASSERT_TRUE(runtime_->Copy(stream_.get(), device, in.data(), 4000).ok());
  std::fill(in.begin(), in.end(), 0);  // pageable: the copy has read it
  ASSERT_TRUE(runtime_->Fill(stream_.get(), device + 10, 0, 8).ok());
  ASSERT_TRUE(runtime_->Copy(stream_.get(), out.data(), device, 4000).ok());
  EXPECT_EQ(out[9], 16);
  EXPECT_EQ(out[10], 0);
  EXPECT_EQ(out[11], 0);
  EXPECT_EQ(out[999], 1006);
  EXPECT_TRUE(runtime_->Free(kDevice, device).ok());
}

// The first stream is held back by a host function until the second is known to wait.
TEST_F(EmulatedRuntimeTest, WorkRunsLaterAndEventsOrderStreams) {
  const UniqueStream other = *MakeStream(*runtime_, kDevice);
  const UniqueEvent event = *MakeEvent(*runtime_, kDevice);
  int* device = AllocateInts(1);
  int* pinned = PinnedInts(2);
  pinned[0] = 1;
  pinned[1] = 0;
  std::mutex gate;
  gate.lock();
  const auto wait = [](void* data) {
    static_cast<std::mutex*>(data)->lock();
    static_cast<std::mutex*>(data)->unlock();
  };
  ASSERT_TRUE(runtime_->HostFunction(stream_.get(), wait, &gate).ok());
  ASSERT_TRUE(runtime_->Copy(stream_.get(), device, pinned, 4).ok());
  ASSERT_TRUE(runtime_->Record(event.get(), stream_.get()).ok());
  ASSERT_TRUE(runtime_->Wait(other.get(), event.get()).ok());
  ASSERT_TRUE(runtime_->Copy(other.get(), pinned + 1, device, 4).ok());
  EXPECT_FALSE(*runtime_->Finished(stream_.get()));
  EXPECT_FALSE(*runtime_->Finished(other.get()));
  EXPECT_FALSE(*runtime_->Finished(event.get()));
  pinned[0] = 42;  // nothing has read it yet
  gate.unlock();
  ASSERT_TRUE(runtime_->Synchronize(other.get()).ok());
  EXPECT_EQ(pinned[1], 42);
  EXPECT_TRUE(*runtime_->Finished(event.get()));
  EXPECT_TRUE(runtime_->FreePinned(pinned).ok());
}

TEST_F(EmulatedRuntimeTest, ClockIsVirtualAndRepeatable) {
  const auto seconds = [&](uint64_t seed) {
    EmulatedRuntimeOptions options;
    options.seed = seed;
    Make(options);
    const UniqueEvent start = *MakeEvent(*runtime_, kDevice), end = *MakeEvent(*runtime_, kDevice);
    int* device = AllocateInts(1 << 20);
    EXPECT_FALSE(runtime_->Seconds(start.get(), end.get()).ok()) << "not recorded";
    EXPECT_TRUE(runtime_->Record(start.get(), stream_.get()).ok());
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(runtime_->Fill(stream_.get(), device, 1, 4 << 20).ok());
    }
    EXPECT_TRUE(runtime_->Record(end.get(), stream_.get()).ok());
    EXPECT_TRUE(runtime_->Synchronize(end.get()).ok());
    const double result = *runtime_->Seconds(start.get(), end.get());
    stream_ = {};
    return result;
  };
  const double ideal = 3 * (5e-6 + (4 << 20) / 25e9);
  const double first = seconds(1);
  EXPECT_GE(first, ideal * (1 - 1e-9));
  EXPECT_LE(first, ideal * 1.1);
  EXPECT_EQ(seconds(1), first);
  EXPECT_NE(seconds(2), first);
}

TEST_F(EmulatedRuntimeTest, AddressesAreChecked) {
  std::vector<int> host(64);
  int* device = AllocateInts(16);
  const auto message = [&](void* to, const void* from, int64_t bytes) {
    return Message(runtime_->Copy(stream_.get(), to, from, bytes));
  };
  EXPECT_THAT(message(device, host.data(), 68), HasSubstr("destination is 68 bytes from byte 0"));
  EXPECT_THAT(message(host.data(), device + 8, 36), HasSubstr("source is 36 bytes from byte 32"));
  EXPECT_THAT(message(nullptr, device, 4), HasSubstr("destination is null"));
  EXPECT_THAT(message(device, host.data(), -1), HasSubstr("-1"));
  EXPECT_EQ(message(nullptr, nullptr, 0), "");
  EXPECT_THAT(Message(runtime_->Fill(stream_.get(), host.data(), 0, 4)), HasSubstr("host memory"));
  EXPECT_FALSE(runtime_->Free(kDevice, device + 1).ok());
  EXPECT_FALSE(runtime_->Free(kDevice, host.data()).ok());
  EXPECT_FALSE(runtime_->FreePinned(host.data()).ok());
  ASSERT_TRUE(runtime_->Free(kDevice, device).ok());
  EXPECT_FALSE(runtime_->Free(kDevice, device).ok()) << "twice";
  EXPECT_THAT(message(device, host.data(), 4), HasSubstr("freed"));
  EXPECT_THAT(Message(runtime_->Fill(stream_.get(), device, 0, 4)), HasSubstr("freed"));
}

TEST_F(EmulatedRuntimeTest, ParametersThatPointToFreedMemoryAreRefused) {
  struct Params {
    int64_t before;
    int* data;
  };
  KernelFunction function;
  function.name = "toy";
  function.params_bytes = sizeof(Params);
  function.emulated = [](const void* params) { *static_cast<const Params*>(params)->data = 5; };
  Params params = {1, AllocateInts(4)};
  ASSERT_TRUE(runtime_->Launch(stream_.get(), function, {}, &params).ok());
  int got = 0;
  ASSERT_TRUE(runtime_->Copy(stream_.get(), &got, params.data, 4).ok());
  EXPECT_EQ(got, 5);
  ASSERT_TRUE(runtime_->Free(kDevice, params.data).ok());
  EXPECT_THAT(Message(runtime_->Launch(stream_.get(), function, {}, &params)),
              HasSubstr("Launch toy: the parameter at byte 8"));
}

TEST_F(EmulatedRuntimeTest, OtherDevicesAndDeadHandlesAreErrors) {
  EXPECT_THAT(Message(runtime_->Allocate(0, 4).status()), HasSubstr("cuda:0"));
  EXPECT_FALSE(runtime_->CreateStream(1).ok());
  EXPECT_FALSE(runtime_->CreateEvent(1).ok());
  EXPECT_FALSE(runtime_->Memory(1).ok());
  EXPECT_FALSE(runtime_->Synchronize(StreamHandle{}).ok());
  const StreamHandle dead = *runtime_->CreateStream(kDevice);
  ASSERT_TRUE(runtime_->DestroyStream(dead).ok());
  EXPECT_FALSE(runtime_->DestroyStream(dead).ok());
  EXPECT_FALSE(runtime_->Fill(dead, AllocateInts(1), 0, 4).ok());
  EXPECT_FALSE(runtime_->Record(EventHandle{}, stream_.get()).ok());
  EXPECT_FALSE(runtime_->LaunchGraph(GraphHandle{}, stream_.get()).ok());
}

TEST_F(EmulatedRuntimeTest, MemoryRunsOutAndComesBackInAnyOrder) {
  EmulatedRuntimeOptions options;
  options.memory_bytes = 1 << 20;
  Make(options);
  for (int round = 0; round < 3; ++round) {
    std::vector<void*> blocks;
    for (int i = 0; i < 1024; ++i) blocks.push_back(*runtime_->Allocate(kDevice, 1024));
    const auto none = runtime_->Allocate(kDevice, 1);
    EXPECT_EQ(none.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(runtime_->Memory(kDevice)->free_bytes, 0);
    // Every other one first, so that neighbours merge on both sides.
    for (size_t start : {0, 1}) {
      for (size_t i = start; i < blocks.size(); i += 2) {
        ASSERT_TRUE(runtime_->Free(kDevice, blocks[i]).ok());
      }
    }
    void* whole = *runtime_->Allocate(kDevice, 1 << 20);
    ASSERT_TRUE(runtime_->Free(kDevice, whole).ok());
  }
  EXPECT_EQ(runtime_->stats().allocations, 0);
}

TEST_F(EmulatedRuntimeTest, FaultsHitTheCallTheyAreMeantFor) {
  int* device = AllocateInts(4);
  runtime_->Inject({.call = "Fill", .ordinal = 2});
  EXPECT_TRUE(runtime_->Fill(stream_.get(), device, 1, 4).ok());
  EXPECT_TRUE(runtime_->Memory(kDevice).ok());
  EXPECT_FALSE(runtime_->fault_happened());
  EXPECT_EQ(runtime_->Fill(stream_.get(), device, 2, 4).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(runtime_->fault_happened());
  EXPECT_TRUE(runtime_->Fill(stream_.get(), device, 3, 4).ok());
  runtime_->Inject({.call = "Allocate", .kind = Fault::Kind::kOutOfMemory});
  EXPECT_EQ(runtime_->Allocate(kDevice, 4).status().code(), absl::StatusCode::kResourceExhausted);
  runtime_->Inject({.kind = Fault::Kind::kDeviceLost});
  EXPECT_EQ(runtime_->Fill(stream_.get(), device, 3, 4).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(runtime_->Memory(kDevice).status().code(), absl::StatusCode::kUnavailable);
  // What is released is released.
  EXPECT_EQ(runtime_->Free(kDevice, device).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(runtime_->stats().allocations, 0);
  runtime_->Heal();
  EXPECT_TRUE(runtime_->Memory(kDevice).ok());
}

TEST_F(EmulatedRuntimeTest, GraphsRepeatWhatWasCaptured) {
  int* device = AllocateInts(2);
  int* pinned = PinnedInts(2);
  pinned[0] = 1;
  pinned[1] = 0;
  ASSERT_TRUE(runtime_->BeginCapture(stream_.get()).ok());
  EXPECT_FALSE(runtime_->BeginCapture(stream_.get()).ok());
  ASSERT_TRUE(runtime_->Copy(stream_.get(), device, pinned, 4).ok());
  ASSERT_TRUE(runtime_->Copy(stream_.get(), pinned + 1, device, 4).ok());
  int pageable = 0;
  EXPECT_THAT(Message(runtime_->Copy(stream_.get(), &pageable, device, 4)), HasSubstr("pinned"));
  EXPECT_FALSE(runtime_->Synchronize(stream_.get()).ok());
  UniqueGraph graph = *MakeGraph(*runtime_, stream_.get());
  EXPECT_FALSE(MakeGraph(*runtime_, stream_.get()).ok());
  ASSERT_TRUE(runtime_->Synchronize(stream_.get()).ok());
  EXPECT_EQ(pinned[1], 0) << "recorded, not run";
  for (int value : {5, 6}) {
    pinned[0] = value;
    ASSERT_TRUE(runtime_->LaunchGraph(graph.get(), stream_.get()).ok());
    ASSERT_TRUE(runtime_->Synchronize(stream_.get()).ok());
    EXPECT_EQ(pinned[1], value);
  }
  EXPECT_EQ(runtime_->stats().graphs, 1);
  graph = {};
  EXPECT_EQ(runtime_->stats().graphs, 0);
  EXPECT_TRUE(runtime_->FreePinned(pinned).ok());
}

TEST(CudaRuntime, NoDeviceIsAStatusThatSaysWhy) {
  const Probe probe = ProbeDevices();
  if (!probe.devices.empty()) GTEST_SKIP() << "this machine has a CUDA device";
  const auto runtime = MakeCudaRuntime();
  EXPECT_EQ(runtime.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(runtime.status()), HasSubstr(probe.message));
}

}  // namespace
}  // namespace tandem::cuda
