// The cases catch what they are there to catch, and the engine what a kernel may do wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/cases/attention_cases.h"
#include "tests/cases/matmul_cases.h"
#include "tests/planted_attention.h"
#include "tests/planted_bugs.h"
#include "tests/reference/elements.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

// --- matrix product

enum class Flaw { kNone, kIgnoresBias, kBetaOnProduct, kSwappedNibbles, kF16Sum, kFirstBatchOnly };

template <Flaw kFlaw>
absl::Status PlantedMatMul(const KernelContext&, const MatMulArgs& args) {
  const bool batched = args.out.rank() == 3;
  for (int64_t z = 0; z < (batched ? args.out.dim(0) : 1); ++z) {
    const auto matrix = [&](const TensorView& v) {
      if (v.rank() != 3) return v;
      return Select(v, 0, v.dim(0) == 1 || kFlaw == Flaw::kFirstBatchOnly ? 0 : z);
    };
    const TensorView a = matrix(args.a), b = matrix(args.b);
    const TensorView out = batched ? Select(args.out, 0, z) : args.out;
    for (int64_t i = 0; i < args.m(); ++i) {
      for (int64_t j = 0; j < args.n(); ++j) {
        double sum = 0.0;
        for (int64_t c = 0; c < args.k(); ++c) {
          const int64_t at = kFlaw == Flaw::kSwappedNibbles && b.dtype == DType::kQ4_0 ? c ^ 16 : c;
          sum += reference::ReadAt(a, i * a.stride(0) + c * a.stride(1)) *
                 reference::ReadAt(b, j * b.stride(0) + at * b.stride(1));
          if (kFlaw == Flaw::kF16Sum) sum = reference::RoundTo(DType::kF16, sum);
        }
        sum *= args.alpha;
        if (args.bias.present() && kFlaw != Flaw::kIgnoresBias) {
          sum += reference::ReadAt(args.bias, j * args.bias.stride(0));
        }
        if (args.activation == Activation::kSilu) sum /= 1.0 + std::exp(-sum);
        if (args.activation == Activation::kRelu) sum = std::max(sum, 0.0);
        if (args.activation == Activation::kGelu) {
          sum *= 0.5 * (1.0 + std::tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
        }
        if (args.addend.present()) {
          const TensorView addend = matrix(args.addend);
          const double extra =
              reference::ReadAt(addend, i * addend.stride(0) + j * addend.stride(1));
          sum = kFlaw == Flaw::kBetaOnProduct ? args.beta * sum + extra : sum + args.beta * extra;
        }
        Store(out, i * out.stride(0) + j * out.stride(1), static_cast<float>(sum));
      }
    }
  }
  return absl::OkStatus();
}

template <Flaw kFlaw>
Kernel<MatMulArgs> FlawedMatMul() {
  return {.name = "planted",
          .device = DeviceKind::kCpu,
          .supports = SupportsAll<MatMulArgs>,
          .workspace_bytes = NoWorkspace<MatMulArgs>,
          .run = PlantedMatMul<kFlaw>};
}

TEST_F(PlantedBugs, MatMul) {
  // The planted kernel is plain code of this file: nothing for sanitizers to find in minutes of it.
  if (kSanitized) GTEST_SKIP() << "the plain build runs it";
  const auto first_failure = [&](const Kernel<MatMulArgs>& kernel) {
    return FirstFailure<MatMulCase>(kernel, GridSize::kFull);
  };
  EXPECT_EQ(first_failure(FlawedMatMul<Flaw::kNone>()), "");
  EXPECT_THAT(first_failure(FlawedMatMul<Flaw::kIgnoresBias>()), HasSubstr("out["));
  EXPECT_THAT(first_failure(FlawedMatMul<Flaw::kBetaOnProduct>()), HasSubstr("out["));
  EXPECT_THAT(first_failure(FlawedMatMul<Flaw::kSwappedNibbles>()), HasSubstr("out["));
  EXPECT_THAT(first_failure(FlawedMatMul<Flaw::kF16Sum>()), HasSubstr("out["));
  EXPECT_THAT(first_failure(FlawedMatMul<Flaw::kFirstBatchOnly>()), HasSubstr("out["));
}

// --- errors of kernels

TEST_F(PlantedBugs, KernelErrorsAreFailuresWithAReproducer) {
  Kernel<AttentionArgs> kernel = PlantedKernel<Bug::kNone>();
  kernel.run = [](const KernelContext&, const AttentionArgs&) {
    return absl::InternalError("launch failed");
  };
  const Outcome failed = RunCase(AttentionCase{}, kernel, target_);
  EXPECT_TRUE(failed.failed());
  EXPECT_THAT(failed.message, HasSubstr("launch failed"));
  EXPECT_THAT(failed.message, HasSubstr("--case 'attention'"));

  kernel.supports = [](const KernelContext&, const AttentionArgs&) {
    return Unimplemented("needs avx1024");
  };
  const Outcome unsupported = RunCase(AttentionCase{}, kernel, target_);
  EXPECT_EQ(unsupported.kind, Outcome::Kind::kUnsupported);
  EXPECT_EQ(unsupported.message, "needs avx1024");

  kernel.supports = [](const KernelContext&, const AttentionArgs&) {
    return InvalidArgument("supports may not judge arguments");
  };
  EXPECT_TRUE(RunCase(AttentionCase{}, kernel, target_).failed());

  kernel = PlantedKernel<Bug::kNone>();
  kernel.workspace_bytes = [](const KernelContext&, const AttentionArgs&) { return int64_t{-1}; };
  EXPECT_THAT(RunCase(AttentionCase{}, kernel, target_).message, HasSubstr("workspace_bytes"));
}

TEST_F(PlantedBugs, BadCasesAreNotPassed) {
  AttentionCase c;
  c.q_heads = 3;
  c.kv_heads = 2;
  const Outcome outcome = RunCase(c, PlantedKernel<Bug::kNone>(), target_);
  EXPECT_TRUE(outcome.failed());
  EXPECT_THAT(outcome.message, HasSubstr("query heads"));
  c.q_heads = -2;
  EXPECT_THAT(RunCase(c, PlantedKernel<Bug::kNone>(), target_).message, HasSubstr("negative"));
  c.q_heads = int64_t{1} << 40;
  EXPECT_TRUE(RunCase(c, PlantedKernel<Bug::kNone>(), target_).failed());
}

// --- a device with its own memory

// Memory that only Copy reaches on a device's behalf (here: other host memory), as on a GPU.
class OtherStream final : public Stream {
 public:
  Device device() const override { return {DeviceKind::kCuda, 0}; }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  absl::StatusOr<std::unique_ptr<Event>> Record() override { return Unimplemented("no events"); }
  absl::Status Wait(const Event&) override { return absl::OkStatus(); }
};

class OtherDevice final : public Backend {
 public:
  Device device() const override { return {DeviceKind::kCuda, 0}; }
  std::string description() const override { return "other"; }
  Allocator& allocator() override { return *allocator_; }
  absl::StatusOr<MemoryInfo> memory() const override { return MemoryInfo{}; }
  absl::StatusOr<std::unique_ptr<Stream>> CreateStream() override {
    return std::make_unique<OtherStream>();
  }
  absl::Status Copy(Stream&, void* destination, const void* source, int64_t bytes) override {
    ++copies;
    std::memcpy(destination, source, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  int copies = 0;

 private:
  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
};

TEST(OtherDevices, OperandsTravelThereAndBack) {
  OtherDevice device;
  const auto stream = device.CreateStream();
  ASSERT_TRUE(stream.ok());
  const Target target = {.backend = &device, .stream = stream->get(), .pack = nullptr};
  Kernel<AttentionArgs> kernel = PlantedKernel<Bug::kNone>();
  kernel.supports = [](const KernelContext&, const AttentionArgs& args) {
    return args.q.device.kind == DeviceKind::kCuda && args.out.device.kind == DeviceKind::kCuda
               ? absl::OkStatus()
               : InvalidArgument("expected operands on the device");
  };
  AttentionCase c;
  c.q_heads = 4;
  c.kv_len = 20;
  c.lse = true;
  const Outcome outcome = RunCase(c, kernel, target);
  EXPECT_TRUE(outcome.passed()) << outcome.message;
  EXPECT_GE(device.copies, 2 * 5 + 3) << "five operands there and back, the workspace, its guards";
  kernel.run = Planted<Bug::kWritesPastTheEnd>::Run;
  EXPECT_THAT(RunCase(c, kernel, target).message, HasSubstr("guard"));
}

}  // namespace
}  // namespace tandem::cases
