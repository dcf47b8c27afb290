// After the error of a kernel a CUDA device does no more: every call returns that error, until
// there is a new runtime. The emulated device does the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/runtime/handles.h"
#include "cuda/stream.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "tests/cases/renewable_context.h"

namespace tandem::cuda::emulated {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kDevice = kEmulatedDevice;

struct PlantedParams {
  int* data = nullptr;
};

// Half of the threads wait for the other half.
__global__ void HalfABarrier(const PlantedParams p) {
  if (threadIdx.x < blockDim.x / 2) SyncThreads();
  if (p.data != nullptr && threadIdx.x == 0) *p.data = 1;
}
__global__ void StoreFive(const PlantedParams p) {
  if (threadIdx.x == 0) *p.data = 5;
}

const LaunchConfig kTwoWarps = {.block = {64, 1, 1}};

class LostDevice : public testing::Test {
 protected:
  int* Ints() { return static_cast<int*>(*runtime_->Allocate(kDevice, 4)); }
  absl::Status Launch(StreamHandle stream, const KernelFunction& function, int* data) {
    const PlantedParams params = {data};
    return runtime_->Launch(stream, function, kTwoWarps, &params);
  }
  absl::Status LaunchBroken(StreamHandle stream) {
    return Launch(stream, MakeKernelFunction<&HalfABarrier>("half_a_barrier"), nullptr);
  }
  absl::Status LaunchGood(StreamHandle stream, int* data) {
    return Launch(stream, MakeKernelFunction<&StoreFive>("store_five"), data);
  }

  std::unique_ptr<EmulatedRuntime> runtime_ = MakeEmulatedRuntime({.memory_bytes = 1 << 20});
  UniqueStream stream_ = *MakeStream(*runtime_, kDevice);
};

TEST_F(LostDevice, EveryCallReturnsTheErrorOfTheKernel) {
  const UniqueStream other = *MakeStream(*runtime_, kDevice);
  UniqueEvent event = *MakeEvent(*runtime_, kDevice);
  int* data = Ints();
  ASSERT_TRUE(runtime_->Fill(stream_.get(), data, 0, 4).ok());
  ASSERT_TRUE(LaunchBroken(stream_.get()).ok());  // what it does is found out later
  const absl::Status error = runtime_->Synchronize(stream_.get());
  EXPECT_EQ(error.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(error), AllOf(HasSubstr("Synchronize: the device is lost: kernel "
                                              "half_a_barrier (emulated, schedule fifo)"),
                                    HasSubstr("arrier")));
  const std::string what = Message(error).substr(Message(error).find("the device is lost"));
  const auto expect_lost = [&](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(Message(status), HasSubstr(what));
  };
  for (int i = 0; i < 2; ++i) {
    expect_lost(runtime_->Synchronize(stream_.get()));
    expect_lost(runtime_->Synchronize(other.get()));
    expect_lost(runtime_->Finished(other.get()).status());
    expect_lost(runtime_->Memory(kDevice).status());
    expect_lost(runtime_->Allocate(kDevice, 4).status());
    expect_lost(runtime_->AllocatePinned(4).status());
    expect_lost(runtime_->CreateStream(kDevice).status());
    expect_lost(runtime_->CreateEvent(kDevice).status());
    expect_lost(runtime_->Record(event.get(), stream_.get()));
    expect_lost(runtime_->Wait(stream_.get(), event.get()));
    expect_lost(runtime_->Synchronize(event.get()));
    expect_lost(runtime_->Finished(event.get()).status());
    expect_lost(runtime_->Fill(other.get(), data, 7, 4));
    int got = 3;
    expect_lost(runtime_->Copy(other.get(), &got, data, 4));
    EXPECT_EQ(got, 3);
    expect_lost(LaunchGood(other.get(), data));
    expect_lost(runtime_->HostFunction(
        stream_.get(), [](void*) {}, nullptr));
    expect_lost(runtime_->BeginCapture(stream_.get()));
  }
  // Releasing releases, so that nothing is lost with the device.
  expect_lost(runtime_->DestroyEvent(event.get()));
  event = {};
  expect_lost(runtime_->Free(kDevice, data));
  EXPECT_EQ(runtime_->stats(), (EmulatedStats{.streams = 2}));
}

// The host goes on while the kernel fails: what is queued behind it on any stream is dropped.
TEST_F(LostDevice, QueuedWorkIsDropped) {
  const UniqueStream other = *MakeStream(*runtime_, kDevice);
  const UniqueEvent event = *MakeEvent(*runtime_, kDevice);
  int* data = Ints();
  ASSERT_TRUE(runtime_->Fill(stream_.get(), data, 0, 4).ok());
  std::mutex gate;
  bool called = false;
  gate.lock();
  const auto wait = [](void* mutex) {
    static_cast<std::mutex*>(mutex)->lock();
    static_cast<std::mutex*>(mutex)->unlock();
  };
  ASSERT_TRUE(runtime_->HostFunction(stream_.get(), wait, &gate).ok());
  ASSERT_TRUE(LaunchBroken(stream_.get()).ok());
  ASSERT_TRUE(LaunchGood(stream_.get(), data).ok());
  ASSERT_TRUE(runtime_
                  ->HostFunction(
                      stream_.get(), [](void* flag) { *static_cast<bool*>(flag) = true; }, &called)
                  .ok());
  ASSERT_TRUE(runtime_->Record(event.get(), stream_.get()).ok());
  ASSERT_TRUE(runtime_->Wait(other.get(), event.get()).ok());
  ASSERT_TRUE(LaunchGood(other.get(), data).ok());
  gate.unlock();
  EXPECT_EQ(runtime_->Synchronize(other.get()).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(runtime_->Synchronize(event.get()).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(called) << "CUDA does not call host functions after an error either";
  runtime_->Heal();
  int got = 3;
  ASSERT_TRUE(runtime_->Copy(stream_.get(), &got, data, 4).ok());
  EXPECT_EQ(got, 0);
  ASSERT_TRUE(LaunchGood(other.get(), data).ok());
  ASSERT_TRUE(runtime_->Copy(other.get(), &got, data, 4).ok());
  EXPECT_EQ(got, 5);
  EXPECT_TRUE(runtime_->Free(kDevice, data).ok());
}

// What a GPU refuses at once costs it nothing.
TEST_F(LostDevice, RefusedCallsLoseNothing) {
  int* data = Ints();
  EXPECT_FALSE(Launch(stream_.get(), KernelFunction{.name = "absent"}, nullptr).ok());
  EXPECT_FALSE(runtime_->Fill(stream_.get(), data, 0, 8).ok());
  EXPECT_FALSE(runtime_->Copy(stream_.get(), data, nullptr, 4).ok());
  EXPECT_FALSE(runtime_->Allocate(kDevice, 1 << 21).ok());
  EXPECT_FALSE(runtime_->LaunchGraph({}, stream_.get()).ok());
  ASSERT_TRUE(runtime_->Free(kDevice, data).ok());
  EXPECT_FALSE(LaunchGood(stream_.get(), data).ok()) << "freed";
  EXPECT_TRUE(runtime_->Synchronize(stream_.get()).ok());
}

absl::Status LoseDevice(Context& context) {
  auto& stream = static_cast<CudaStream&>(*context.device(DeviceKind::kCuda)->stream);
  TANDEM_RETURN_IF_ERROR(stream.Launch(MakeKernelFunction<&HalfABarrier>("half_a_barrier"),
                                       kTwoWarps, PlantedParams{}));
  return stream.Synchronize();
}

Tensor Ones(Context& context) {
  Tensor tensor = *Tensor::Allocate(context.host_allocator(), DType::kF32, {4, 8});
  std::fill_n(tensor.As<float>(), 32, 1.0f);
  return tensor;
}

TEST(LostDeviceContext, OpsThereFailOpsOnTheHostGoOn) {
  ContextOptions options;
  options.threads = 1;
  options.cuda_emulated = true;
  const auto context = *Context::Create(options);
  const Tensor host = Ones(*context);
  const Tensor there = *CopyTo(*context, DeviceKind::kCuda, host);
  ASSERT_TRUE(AddInto(*context, {.a = there, .b = there, .out = there}).ok());
  EXPECT_EQ(LoseDevice(*context).code(), absl::StatusCode::kUnavailable);
  const absl::Status status = AddInto(*context, {.a = there, .b = there, .out = there});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("half_a_barrier"));
  EXPECT_EQ(Synchronize(*context, DeviceKind::kCuda).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(CopyTo(*context, DeviceKind::kCuda, host).ok());
  ASSERT_TRUE(AddInto(*context, {.a = host, .b = host, .out = host}).ok());
  EXPECT_EQ(host.As<float>()[31], 2.0f);
}

TEST(LostDeviceContext, IsMadeAnew) {
  ContextOptions options;
  options.threads = 1;
  ASSERT_TRUE(options.SetDevice("cuda:emulated").ok());
  auto context = cases::RenewableContext::Create(options);
  ASSERT_TRUE(context.ok()) << context.status();
  EXPECT_FALSE(context->RenewIfLost(DeviceKind::kCuda));
  EXPECT_FALSE(context->RenewIfLost(DeviceKind::kCpu));
  for (int round = 0; round < 2; ++round) {
    EXPECT_FALSE(LoseDevice(**context).ok());
    EXPECT_TRUE(context->RenewIfLost(DeviceKind::kCuda));
    const Tensor host = Ones(**context);
    ASSERT_TRUE(AddInto(**context, {.a = host, .b = host, .out = host}).ok());
    EXPECT_EQ(host.As<float>()[31], 2.0f);
  }
}

}  // namespace
}  // namespace tandem::cuda::emulated
