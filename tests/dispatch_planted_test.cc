// The cases catch what they are there to catch: kernels with one planted bug each must fail, the
// same kernel without a bug must pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "cpu/backend.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/matmul_cases.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

enum class Bug {
  kNone,
  kCausalOffByOne,
  kTopLeftForBottomRight,
  kWindowOffByOne,
  kHeadModulo,
  kIgnoresNewKeys,
  kMaskedRowDividesByZero,
  kFiniteMinusInfinity,
  kMaskedNanLeaks,
  kNanSwallowed,
  kReadsThroughPadding,
  kWritesThroughPadding,
  kWritesPastTheEnd,
  kLastRowMissing,
  kAddsToOutput,
  kLseBase2,
  kF16Sum,
  kF16Scores,
  kScaleIgnored,
  kTakesMoreWorkspace,
  kWritesBeyondWorkspace,
  kTrustsZeroedWorkspace,
  kWritesInput,
};

void Store(const TensorView& view, int64_t offset, float x) {
  DispatchFloat(view.dtype, [&]<typename T>() { *view.At<T>(offset) = FromFloat<T>(x); });
}

// Strides as if rows had no gaps, for the bugs that ignore them.
TensorView Dense(TensorView view) {
  view.strides = ContiguousStrides(view.shape);
  return view;
}

int64_t At(const TensorView& v, int64_t b, int64_t h, int64_t i, int64_t c) {
  return b * v.stride(0) + h * v.stride(1) + i * v.stride(2) + c * v.stride(3);
}

// Attention of one query, written out plainly.
template <Bug kBug>
class Planted {
 public:
  static absl::Status Run(const KernelContext& context, const AttentionArgs& args) {
    const int64_t keys = args.kv_len();
    auto* scores = context.workspace->Take<float>(keys);
    if (kBug == Bug::kTakesMoreWorkspace) (void)context.workspace->Take<float>(1);
    if (kBug == Bug::kWritesBeyondWorkspace) scores[(keys + 15) / 16 * 16] = 0.0f;
    const TensorView q = kBug == Bug::kReadsThroughPadding ? Dense(args.q) : args.q;
    const TensorView out = kBug == Bug::kWritesThroughPadding ? Dense(args.out) : args.out;
    for (int64_t b = 0; b < args.batch(); ++b) {
      for (int64_t h = 0; h < args.q_heads(); ++h) {
        for (int64_t i = 0; i < args.q_len(); ++i) {
          if (kBug == Bug::kLastRowMissing && i > 0 && i + 1 == args.q_len()) continue;
          Row(args, q, out, scores, b, h, i);
        }
      }
    }
    if (kBug == Bug::kWritesPastTheEnd && !out.empty()) {
      Store(out, ByteExtent(out) / BlockBytes(out.dtype), 0.0f);
    }
    if (kBug == Bug::kWritesInput && !args.q.empty()) Store(args.q, 0, 1.0f);
    return absl::OkStatus();
  }

 private:
  static KeyRange Visible(const AttentionArgs& args, int64_t i) {
    MaskRule rule = args.Rule();
    if (kBug == Bug::kTopLeftForBottomRight && rule.causal == Causal::kBottomRight) {
      rule.causal = Causal::kTopLeft;
    }
    if (kBug == Bug::kWindowOffByOne && rule.window_left > 0) --rule.window_left;
    KeyRange range = rule.Range(i);
    if (kBug == Bug::kCausalOffByOne && rule.causal != Causal::kNone && range.end < rule.kv_len) {
      ++range.end;
    }
    if (kBug == Bug::kIgnoresNewKeys) {
      range.end = std::min(range.end, args.cache_len());
      range.begin = std::min(range.begin, range.end);
    }
    return range;
  }

  // Element c of key or value j of the cache followed by the new ones.
  static float Load(const TensorView& cache, const TensorView& fresh, int64_t b, int64_t g,
                    int64_t j, int64_t c) {
    const int64_t cached = cache.dim(2);
    return static_cast<float>(j < cached
                                  ? reference::ReadAt(cache, At(cache, b, g, j, c))
                                  : reference::ReadAt(fresh, At(fresh, b, g, j - cached, c)));
  }

  static void Row(const AttentionArgs& args, const TensorView& q, const TensorView& out,
                  float* scores, int64_t b, int64_t h, int64_t i) {
    const KeyRange range = Visible(args, i);
    const int64_t g =
        kBug == Bug::kHeadModulo ? h % args.kv_heads() : (args.kv_heads() ? h / args.group() : 0);
    const int64_t first =
        kBug == Bug::kMaskedNanLeaks || kBug == Bug::kFiniteMinusInfinity ? 0 : range.begin;
    const int64_t last = first == range.begin ? range.end : args.kv_len();
    const float scale = kBug == Bug::kScaleIgnored
                            ? 1.0f / std::sqrt(static_cast<float>(args.head_dim()))
                            : args.Scale();
    float largest = -INFINITY;
    for (int64_t j = first; j < last; ++j) {
      float s = kBug == Bug::kTrustsZeroedWorkspace ? scores[j] : 0.0f;
      for (int64_t c = 0; c < args.head_dim(); ++c) {
        s += static_cast<float>(reference::ReadAt(q, At(q, b, h, i, c))) *
             Load(args.k, args.k_new, b, g, j, c);
      }
      s *= scale;
      if (kBug == Bug::kF16Scores) s = ToFloat(ToF16(s));
      if (kBug == Bug::kNanSwallowed && std::isnan(s)) s = -1e30f;
      const bool visible = j >= range.begin && j < range.end;
      if (!visible) s = kBug == Bug::kFiniteMinusInfinity ? -1e30f : -INFINITY;
      scores[j] = s;
      if (visible || kBug == Bug::kFiniteMinusInfinity) largest = std::max(largest, s);
    }
    float sum = 0.0f;
    for (int64_t j = first; j < last; ++j) {
      scores[j] = scores[j] == -INFINITY ? 0.0f : std::exp(scores[j] - largest);
      sum += scores[j];
    }
    for (int64_t c = 0; c < args.v_head_dim(); ++c) {
      float acc = 0.0f;
      for (int64_t j = first; j < last; ++j) {
        acc += scores[j] * Load(args.v, args.v_new, b, g, j, c);
        if (kBug == Bug::kF16Sum) acc = ToFloat(ToF16(acc));
      }
      const bool empty = sum == 0.0f && kBug != Bug::kMaskedRowDividesByZero;
      const int64_t at = At(out, b, h, i, c);
      if (kBug == Bug::kAddsToOutput) acc += static_cast<float>(reference::ReadAt(out, at)) * sum;
      Store(out, at, empty ? 0.0f : acc / sum);
    }
    if (args.lse.present()) {
      float lse = sum == 0.0f ? -INFINITY : largest + std::log(sum);
      if (kBug == Bug::kLseBase2) lse *= 1.4426950f;
      Store(args.lse, b * args.lse.stride(0) + h * args.lse.stride(1) + i * args.lse.stride(2),
            lse);
    }
  }
};

absl::Status SupportsPlain(const KernelContext&, const AttentionArgs& args) {
  for (const TensorView& view :
       {args.alibi_slopes, args.bias, args.mask, args.sinks, args.page_table, args.k_scale}) {
    if (view.present()) return Unimplemented("variants");
  }
  if (args.ragged() || args.softcap != 0 || args.chunk != 0 || args.prefix_len != 0) {
    return Unimplemented("variants");
  }
  return absl::OkStatus();
}

template <Bug kBug>
Kernel<AttentionArgs> PlantedKernel() {
  return {.name = "planted",
          .device = DeviceKind::kCpu,
          .supports = SupportsPlain,
          .workspace_bytes =
              [](const KernelContext&, const AttentionArgs& args) {
                auto counter = Workspace::Counting();
                (void)counter.Take<float>(args.kv_len());
                return counter.bytes_used();
              },
          .run = Planted<kBug>::Run};
}

class PlantedBugs : public testing::Test {
 protected:
  void SetUp() override {
    cpu::CpuOptions options;
    options.threads = 1;
    auto backend = cpu::MakeCpuBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status().ToString();
    backend_ = *std::move(backend);
    auto stream = backend_->CreateStream();
    ASSERT_TRUE(stream.ok()) << stream.status().ToString();
    stream_ = *std::move(stream);
    target_ = {.backend = backend_.get(), .stream = stream_.get(), .pack = nullptr};
  }

  // The message of the first case that fails, or "" if all pass.
  template <typename Case>
  std::string FirstFailure(const Kernel<typename Case::Args>& kernel, GridSize grid) {
    for (const Case& c : Case::Grid(grid)) {
      const Outcome outcome = RunCase(c, kernel, target_);
      if (outcome.failed()) {
        EXPECT_THAT(outcome.message, HasSubstr("tandem check --kernel planted --case '"));
        // The reproducer reproduces.
        const size_t begin = outcome.message.find("--case '") + 8;
        const auto again = ParseCase<Case>(
            outcome.message.substr(begin, outcome.message.find('\'', begin) - begin));
        EXPECT_TRUE(again.ok()) << again.status().ToString();
        if (again.ok()) {
          EXPECT_TRUE(RunCase(*again, kernel, target_).failed());
        }
        return outcome.message;
      }
    }
    return "";
  }

  template <Bug kBug>
  void ExpectCaught(const std::string& message, GridSize grid = GridSize::kShort) {
    EXPECT_THAT(FirstFailure<AttentionCase>(PlantedKernel<kBug>(), grid), HasSubstr(message));
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  Target target_;
};

TEST_F(PlantedBugs, NoBugNoFailure) {
  EXPECT_EQ(FirstFailure<AttentionCase>(PlantedKernel<Bug::kNone>(), GridSize::kShort), "");
}

TEST_F(PlantedBugs, WrongKeys) {
  ExpectCaught<Bug::kCausalOffByOne>("out[");
  ExpectCaught<Bug::kTopLeftForBottomRight>("out[");
  ExpectCaught<Bug::kWindowOffByOne>("out[", GridSize::kFull);
  ExpectCaught<Bug::kHeadModulo>("out[");
  ExpectCaught<Bug::kIgnoresNewKeys>("out[");
}

TEST_F(PlantedBugs, RowsThatSeeNothing) {
  ExpectCaught<Bug::kMaskedRowDividesByZero>("got nan, expected 0");
  ExpectCaught<Bug::kFiniteMinusInfinity>("out[");
}

TEST_F(PlantedBugs, NaN) {
  ExpectCaught<Bug::kMaskedNanLeaks>("got nan");
  ExpectCaught<Bug::kNanSwallowed>("expected nan");
}

TEST_F(PlantedBugs, Memory) {
  ExpectCaught<Bug::kReadsThroughPadding>("out[", GridSize::kFull);
  ExpectCaught<Bug::kWritesThroughPadding>("out", GridSize::kFull);
  ExpectCaught<Bug::kWritesPastTheEnd>("guard or padding bytes of out were changed");
  ExpectCaught<Bug::kLastRowMissing>("got nan");
  ExpectCaught<Bug::kAddsToOutput>("got nan");
  ExpectCaught<Bug::kWritesInput>("input q changed");
}

TEST_F(PlantedBugs, Workspace) {
  ExpectCaught<Bug::kTakesMoreWorkspace>("more workspace than");
  ExpectCaught<Bug::kWritesBeyondWorkspace>("beyond the workspace");
  ExpectCaught<Bug::kTrustsZeroedWorkspace>("got nan");
}

TEST_F(PlantedBugs, Numerics) {
  ExpectCaught<Bug::kLseBase2>("lse[");
  ExpectCaught<Bug::kScaleIgnored>("expected");
  ExpectCaught<Bug::kF16Scores>("expected");
  ExpectCaught<Bug::kF16Sum>("out", GridSize::kFull);
}

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
