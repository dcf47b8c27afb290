// Matrix products by both devices at once: each column is what its device's kernel makes of it.
#include <gtest/gtest.h>

#include <cstring>
#include <future>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/stream.h"
#include "dispatch/copy.h"
#include "dispatch/run_here.h"
#include "dispatch/split_matmul.h"
#include "tests/cases/matmul_cases.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

class SplitMatMulTest : public testing::Test {
 protected:
  SplitMatMulTest() : context_(EmulatedContext(/*forced=*/false)), product_(*context_) {}

  ContextDevice& device(DeviceKind kind) { return *context_->device(kind); }
  cuda::EmulatedRuntime& runtime() { return RuntimeOf(*context_); }

  static MatMulArgs WithoutWeights(MatMulArgs args) {
    args.b = {};
    args.b_packed = nullptr;
    return args;
  }

  DeviceOperands Upload(const Prepared<MatMulCase>& prepared, DeviceKind kind) {
    return DeviceOperands::Upload(prepared.operands, *device(kind).backend, *device(kind).stream)
        .value();
  }
  TensorView Result(DeviceOperands& operands, DeviceKind kind) {
    EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    const auto damage = operands.Download(*device(kind).backend, *device(kind).stream);
    EXPECT_TRUE(damage.ok()) << damage.status();
    EXPECT_EQ(damage.ok() ? damage->value_or("") : "", "");
    return operands.Result("out");
  }

  // The whole product by one device.
  TensorView Whole(const Prepared<MatMulCase>& prepared, DeviceOperands& operands,
                   DeviceKind kind) {
    MatMulArgs args = prepared.c.Bind(operands.views());
    args.b_packed = nullptr;
    const absl::Status status = RunHere(*context_, args);
    EXPECT_TRUE(status.ok()) << status;
    return Result(operands, kind);
  }

  static bool SameBits(const TensorView& x, const TensorView& y, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < x.dim(0); ++row) {
      for (int64_t n = begin; n < end; ++n) {
        const auto at = [&](const TensorView& view) {
          return static_cast<const char*>(view.data) +
                 ByteOffset(view.dtype, row * view.stride(0) + n * view.stride(1));
        };
        if (std::memcmp(at(x), at(y), static_cast<size_t>(BlockBytes(x.dtype))) != 0) return false;
      }
    }
    return true;
  }

  std::unique_ptr<Context> context_;
  SplitMatMul product_;
};

TEST_F(SplitMatMulTest, ColumnsAreThoseOfTheirDevice) {
  for (const DType weights : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
    for (const int64_t m : {1, 7, 40}) {
      MatMulCase c = {.m = m, .n = 96, .k = 256, .b_dtype = weights, .bias = true};
      c.addend = m == 7 ? Addend::kInPlace : m == 40 ? Addend::kSeparate : Addend::kNone;
      c.activation = m == 1 ? Activation::kSilu : Activation::kNone;
      c.float_activations = false;
      const auto prepared = Prepare(c);
      ASSERT_TRUE(prepared.ok()) << prepared.status();
      DeviceOperands on_cpu = Upload(*prepared, DeviceKind::kCpu);
      DeviceOperands on_gpu = Upload(*prepared, DeviceKind::kCuda);
      const TensorView cpu = Whole(*prepared, on_cpu, DeviceKind::kCpu);
      const TensorView gpu = Whole(*prepared, on_gpu, DeviceKind::kCuda);
      for (const int64_t columns : {0, 16, 50, 96}) {
        const TensorView b = Views(prepared->operands)("b");
        const auto split = SplitWeights::Create(*context_, b, columns);
        ASSERT_TRUE(split.ok()) << split.status();
        for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
          SCOPED_TRACE(absl::StrCat(CaseText(c), "; ", columns, " columns on the GPU, a on ",
                                    std::string(Name(home))));
          DeviceOperands operands = Upload(*prepared, home);
          const absl::Status status =
              product_.Run(*split, WithoutWeights(c.Bind(operands.views())));
          ASSERT_TRUE(status.ok()) << status;
          const TensorView out = Result(operands, home);
          Outcome outcome;
          EXPECT_EQ(Compare(prepared->expectations[0], out, outcome), "");
          EXPECT_TRUE(SameBits(out, gpu, 0, columns)) << "the GPU's columns";
          EXPECT_TRUE(SameBits(out, cpu, columns, c.n)) << "the CPU's columns";
        }
      }
    }
  }
  EXPECT_EQ(product_.fallbacks(), 0);
}

TEST_F(SplitMatMulTest, PackedHostColumns) {
  for (const DType weights : {DType::kF32, DType::kQ8_0}) {
    MatMulCase c = {.m = 9, .n = 96, .k = 256, .b_dtype = weights, .float_activations = false};
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    const TensorView b = Views(prepared->operands)("b");
    const auto split = SplitWeights::Create(*context_, b, 32, /*pack=*/true);
    ASSERT_TRUE(split.ok()) << split.status();
    EXPECT_NE(split->packed(), nullptr);
    DeviceOperands operands = Upload(*prepared, DeviceKind::kCpu);
    const absl::Status status = product_.Run(*split, WithoutWeights(c.Bind(operands.views())));
    ASSERT_TRUE(status.ok()) << status;
    Outcome outcome;
    EXPECT_EQ(Compare(prepared->expectations[0], Result(operands, DeviceKind::kCpu), outcome), "");
  }
}

// The GPU's stream is held up: the CPU finishes its columns all the same.
TEST_F(SplitMatMulTest, BothDevicesWorkAtTheSameTime) {
  MatMulCase c = {.m = 3, .n = 96, .k = 64};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto split = SplitWeights::Create(*context_, Views(prepared->operands)("b"), 32);
  ASSERT_TRUE(split.ok()) << split.status();
  DeviceOperands operands = Upload(*prepared, DeviceKind::kCpu);
  const MatMulArgs args = WithoutWeights(c.Bind(operands.views()));
  ASSERT_TRUE(product_.Run(*split, args).ok());  // memory gets its size
  const cuda::StreamHandle stream =
      static_cast<cuda::CudaStream&>(*device(DeviceKind::kCuda).stream).handle();
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  ASSERT_TRUE(runtime()
                  .HostFunction(
                      stream,
                      [](void* data) { static_cast<std::shared_future<void>*>(data)->wait(); },
                      &open)
                  .ok());
  absl::Status status = product_.Queue(*split, args);
  EXPECT_TRUE(status.ok()) << status;
  status = product_.RunHost();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_FALSE(runtime().Finished(stream).value());
  gate.set_value();
  status = product_.Finish();
  ASSERT_TRUE(status.ok()) << status;
  Outcome outcome;
  EXPECT_EQ(Compare(prepared->expectations[0], Result(operands, DeviceKind::kCpu), outcome), "");
}

// Whatever call of the GPU fails, the result is there, in place as well, wherever a is; but not if
// that was in the memory of a device that is lost. It is an event of the context either way.
TEST_F(SplitMatMulTest, FallsBackToTheHost) {
  DeviceHealth& health = context_->health();
  health.SetLog({});
  for (const Addend addend : {Addend::kInPlace, Addend::kNone}) {
    MatMulCase c = {.m = 3, .n = 96, .k = 64, .addend = addend};
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    for (const int64_t gpu_columns : {32, 96}) {
      const auto split =
          SplitWeights::Create(*context_, Views(prepared->operands)("b"), gpu_columns);
      ASSERT_TRUE(split.ok()) << split.status();
      for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
        for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                                cuda::Fault::Kind::kDeviceLost}) {
          const bool lost = kind == cuda::Fault::Kind::kDeviceLost;
          int64_t fallbacks = 0, failures = 0;
          bool happened = true;
          for (int64_t ordinal = 1; happened; ++ordinal) {
            ASSERT_LT(ordinal, 100);
            SCOPED_TRACE(absl::StrCat("call ", ordinal, ", kind ", static_cast<int>(kind), ", ",
                                      gpu_columns, " columns on the GPU, a on ",
                                      std::string(Name(home))));
            DeviceOperands operands = Upload(*prepared, home);
            ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
            SplitMatMul product(*context_);
            const FaultCounters before = health.counters();
            runtime().Inject({.ordinal = ordinal, .kind = kind});
            const absl::Status status =
                product.Run(*split, WithoutWeights(c.Bind(operands.views())));
            happened = runtime().fault_happened();
            runtime().Heal();
            ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
            const FaultCounters& after = health.counters();
            EXPECT_EQ(after.all_fallbacks() - before.all_fallbacks(), product.fallbacks());
            if (lost && home == DeviceKind::kCuda && happened && !status.ok()) {
              EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
              EXPECT_EQ(health.events().back().remedy, FaultRemedy::kOperandsLost);
              EXPECT_EQ(after.failed - before.failed, 1);
              ++failures;
              continue;
            }
            ASSERT_TRUE(status.ok()) << status;
            EXPECT_EQ(after.failed, before.failed);
            fallbacks += product.fallbacks();
            Outcome outcome;
            EXPECT_EQ(Compare(prepared->expectations[0], Result(operands, home), outcome), "");
          }
          if (lost && home == DeviceKind::kCuda) {
            EXPECT_GT(failures, 0);
          } else {
            EXPECT_TRUE(fallbacks > 0 || kind == cuda::Fault::Kind::kOutOfMemory);
          }
        }
      }
    }
  }
}

// Failures that do not pass: without any kernel of the GPU.
TEST_F(SplitMatMulTest, FallsBackWhenEveryLaunchFails) {
  context_->health().SetLog({});
  MatMulCase c = {.m = 3, .n = 96, .k = 64, .bias = true, .addend = Addend::kInPlace};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto split = SplitWeights::Create(*context_, Views(prepared->operands)("b"), 32);
  ASSERT_TRUE(split.ok()) << split.status();
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const char* call : {"Launch", "BlasMatMul"}) {
      DeviceOperands operands = Upload(*prepared, home);
      SplitMatMul product(*context_);
      runtime().Inject({.call = call, .times = 1000});
      const absl::Status status = product.Run(*split, WithoutWeights(c.Bind(operands.views())));
      const bool happened = runtime().fault_happened();
      runtime().Heal();
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(product.fallbacks(), happened ? 1 : 0);
      ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
      Outcome outcome;
      EXPECT_EQ(Compare(prepared->expectations[0], Result(operands, home), outcome), "");
    }
  }
}

// A GPU that failed is left alone for a while, one that is lost for good; then it is asked again.
TEST_F(SplitMatMulTest, LeavesAFailedGpuAlone) {
  DeviceHealth& health = context_->health();
  health.SetLog({});
  const MatMulCase c = {.m = 3, .n = 96, .k = 64};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto split = SplitWeights::Create(*context_, Views(prepared->operands)("b"), 32);
  ASSERT_TRUE(split.ok()) << split.status();
  DeviceOperands operands = Upload(*prepared, DeviceKind::kCpu);
  const auto run = [&] {
    const int64_t calls = runtime().calls();
    const absl::Status status = product_.Run(*split, WithoutWeights(c.Bind(operands.views())));
    EXPECT_TRUE(status.ok()) << status;
    const int64_t asked = runtime().calls() - calls;
    const ContextDevice& cpu = device(DeviceKind::kCpu);
    EXPECT_TRUE(operands.Download(*cpu.backend, *cpu.stream).ok());
    Outcome outcome;
    EXPECT_EQ(Compare(prepared->expectations[0], operands.Result("out"), outcome), "");
    return asked;
  };
  EXPECT_GT(run(), 0);
  runtime().Inject({.call = "Copy"});
  EXPECT_GT(run(), 0);
  EXPECT_EQ(product_.fallbacks(), 1);
  for (int64_t i = 0; i < DeviceHealth::kFirstBackOff; ++i) EXPECT_EQ(run(), 0) << i;
  EXPECT_EQ(health.counters().avoided, DeviceHealth::kFirstBackOff);
  EXPECT_GT(run(), 0);
  EXPECT_TRUE(health.calm());
  runtime().Inject({.call = "Copy", .kind = cuda::Fault::Kind::kDeviceLost});
  EXPECT_GT(run(), 0);
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(health.counters().all_faults(), 2);
}

TEST_F(SplitMatMulTest, ForcedDevicesFailLoudly) {
  context_ = EmulatedContext(/*forced=*/true);
  context_->health().SetLog({});
  const MatMulCase c = {.m = 3, .n = 96, .k = 64};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto split = SplitWeights::Create(*context_, Views(prepared->operands)("b"), 96);
  ASSERT_TRUE(split.ok()) << split.status();
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    DeviceOperands operands = Upload(*prepared, home);
    ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    SplitMatMul product(*context_);
    runtime().Inject({.ordinal = home == DeviceKind::kCpu ? 4 : 1, .times = 1000});
    const absl::Status status = product.Run(*split, WithoutWeights(c.Bind(operands.views())));
    runtime().Heal();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(context_->health().events().back().remedy, FaultRemedy::kFailed);
  }
}

TEST_F(SplitMatMulTest, BadArguments) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  MatMulCase c = {.m = 3, .n = 96, .k = 64, .bias = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const Views views(prepared->operands);
  const TensorView b = views("b");
  const auto create = [&](Context& context, const TensorView& weights, int64_t columns) {
    return SplitWeights::Create(context, weights, columns).status().code();
  };
  EXPECT_EQ(create(*context_, b, -1), kInvalid);
  EXPECT_EQ(create(*context_, b, 97), kInvalid);
  EXPECT_EQ(create(*context_, Transpose(b, 0, 1), 8), kInvalid);
  EXPECT_EQ(create(*context_, {}, 0), kInvalid);
  const auto forced = EmulatedContext(/*forced=*/true);
  EXPECT_EQ(create(*forced, b, 32), kInvalid);
  EXPECT_EQ(create(*forced, b, 96), absl::StatusCode::kOk);

  const auto split = SplitWeights::Create(*context_, b, 32);
  ASSERT_TRUE(split.ok()) << split.status();
  const MatMulArgs good = WithoutWeights(c.Bind(views));
  const auto code = [&](auto change) {
    MatMulArgs args = good;
    change(args);
    return product_.Run(*split, args).code();
  };
  EXPECT_EQ(code([&](MatMulArgs& a) { a.b = b; }), kInvalid);
  EXPECT_EQ(code([&](MatMulArgs& a) { a.a = {}; }), kInvalid);
  EXPECT_EQ(code([&](MatMulArgs& a) { a.a = Slice(a.a, 1, 0, 32); }), kInvalid);
  EXPECT_EQ(code([&](MatMulArgs& a) { a.out = Slice(a.out, 1, 0, 32); }), kInvalid);
  EXPECT_EQ(code([&](MatMulArgs& a) { a.bias = Slice(a.bias, 0, 0, 32); }), kInvalid);
  EXPECT_EQ(product_.fallbacks(), 0);
}

}  // namespace
}  // namespace tandem::cases
