// Limits of CUDA devices: operands of other devices, devices with little shared memory, grids over
// 65 535, more than 2^31 elements, nothing to do. (Launches beyond the limits and old devices:
// cuda_runtime_allocator_test.cc; strides over 2^31 elements: dispatch_far_strides_test.cc.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "dispatch/run.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_context.h"
#include "tests/emulated_device.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;
using Options = cuda::EmulatedRuntimeOptions;

// Every operand in turn in host memory, where all others are in device memory.
TEST(CudaOperandDevices, OneOnAnotherDeviceIsRefusedByName) {
  const auto context = EmulatedContext(/*forced=*/false);
  ContextDevice& device = *context->device(DeviceKind::kCuda);
  int64_t refused = 0;
  ForEachCaseType([&]<typename Case>() {
    for (const Prepared<Case>& prepared : FaultCases<Case>()) {
      const std::vector<Operand>& all = prepared.operands.all();
      for (size_t i = 0; all.size() > 1 && i < all.size(); ++i) {
        if (IsList(Case::Args::kOp, all[i])) continue;
        auto operands = DeviceOperands::Upload(prepared.operands, *device.backend, *device.stream);
        ASSERT_TRUE(operands.ok()) << operands.status();
        for (const bool other_gpu : {false, true}) {
          Views views;
          for (const Operand& operand : all) {
            TensorView view = operands->views()(operand.name);
            if (&operand == &all[i]) {
              if (!other_gpu) view = prepared.operands.View(operand.name);
              view.device = other_gpu ? Device{DeviceKind::kCuda, 3} : Device{};
            }
            views.Add(operand.name, view);
          }
          const absl::Status status = RunOp(*context, prepared.c.Bind(views));
          EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
              << CaseText(prepared.c) << ", " << all[i].name;
          EXPECT_THAT(Message(status), HasSubstr(other_gpu ? "cuda:3" : "on cpu"))
              << CaseText(prepared.c) << ", " << all[i].name;
          ++refused;
        }
        ASSERT_TRUE(operands->Download(*device.backend, *device.stream).ok());
        EXPECT_EQ(operands->OutputHash(), operands->InitialHash()) << CaseText(prepared.c);
      }
    }
  });
  EXPECT_GT(refused, 100);
}

// A kernel takes a call or says why not; it never learns from the launch that it cannot.
TEST(CudaSharedMemory, TooLittleIsUnsupportedNotAnError) {
  // A made-up device, smaller than any; what 8.6 and 8.9 have.
  for (const int64_t bytes : {int64_t{4608}, int64_t{99} << 10}) {
    const EmulatedDevice device(Options{.compute_capability_major = 8,
                                        .compute_capability_minor = 6,
                                        .shared_memory_per_block_bytes = bytes});
    int64_t ran = 0;
    ForEachCaseType([&]<typename Case>() {
      const std::vector<Case> cases = Case::Grid(GridSize::kShort);
      for (size_t i = 0; i < cases.size(); i += kSanitized ? 40 : 10) {
        const auto prepared = Prepare(cases[i]);
        ASSERT_TRUE(prepared.ok()) << prepared.status();
        for (const auto& kernel : KernelsOf<typename Case::Args>(DeviceKind::kCuda)) {
          const Outcome outcome = RunPrepared(*prepared, kernel, device.target());
          EXPECT_FALSE(outcome.failed()) << bytes << " bytes: " << outcome.message;
          ran += outcome.passed();
        }
      }
    });
    EXPECT_GT(ran, 20);
  }
}

TEST(CudaSharedMemory, AnOpThatNeedsMoreSaysHowMuch) {
  const EmulatedDevice device(Options{.shared_memory_per_block_bytes = 1 << 10});
  const auto c = ParseCase<AttentionCase>("attention q_heads=2 kv_heads=1 kv_len=9 head_dim=256");
  ASSERT_TRUE(c.ok()) << c.status();
  for (const auto& kernel : KernelsOf<AttentionArgs>(DeviceKind::kCuda)) {
    const Outcome outcome = RunCase(*c, kernel, device.target());
    EXPECT_EQ(outcome.kind, Outcome::Kind::kUnsupported) << kernel.name;
    if (kernel.name == "generic") {
      EXPECT_THAT(outcome.message, HasSubstr("bytes of shared memory, the device has 1024"));
    }
  }
}

// Every case runs, and right, on at least one kernel of the device.
void ExpectEachRuns(const std::vector<std::string>& texts) {
  const EmulatedDevice device;
  int64_t ran = 0;
  ForEachCaseType([&]<typename Case>() {
    for (const std::string& text : texts) {
      if (SplitWords(text)[0] != OpNameOf<Case>()) continue;
      const auto c = ParseCase<Case>(text);
      ASSERT_TRUE(c.ok()) << c.status();
      const auto prepared = Prepare(*c);
      ASSERT_TRUE(prepared.ok()) << text << ": " << prepared.status();
      bool any = false;
      for (const auto& kernel : KernelsOf<typename Case::Args>(DeviceKind::kCuda)) {
        const Outcome outcome = RunPrepared(*prepared, kernel, device.target());
        EXPECT_FALSE(outcome.failed()) << outcome.message;
        any = any || outcome.passed();
      }
      EXPECT_TRUE(any) << text;
      ++ran;
    }
  });
  EXPECT_EQ(ran, static_cast<int64_t>(texts.size()));
}

// More rows than a grid has in y or z, and than the loops over rows have blocks: at least one op of
// each way in which rows are spread.
TEST(CudaGrids, MoreRowsThanBlocks) {
  if (kSanitized) GTEST_SKIP() << "millions of threads; the plain build runs it";
  ExpectEachRuns({"argmax rows=65537 columns=3", "add rows=65537 columns=5",
                  "silu_mul rows=65537 columns=5", "cast rows=65537 columns=32 out_dtype=q8_0",
                  "embedding tokens=65537 columns=3", "matmul m=65537 n=2 k=3",
                  "matmul m=2 n=65537 k=3"});
}

// No error, and nothing launched that a GPU would refuse.
TEST(CudaGrids, NothingToDo) {
  ExpectEachRuns({"attention batch=0",  "attention q_len=0",  "mask q_len=0",
                  "mask kv_len=0",      "matmul m=0 n=3 k=4", "matmul m=3 n=0 k=4",
                  "matmul m=3 n=2 k=0", "softmax rows=0",     "softmax rows=3 columns=0",
                  "rms_norm rows=0",    "rope batch=0",       "silu_mul rows=0",
                  "silu_mul columns=0", "add rows=0",         "embedding tokens=0",
                  "kv_append batch=0",  "cast rows=0",        "cast rows=0 out_dtype=q8_0",
                  "argmax rows=0",      "sample rows=0",      "merge_attention batch=0"});
}

// ---- more than 2^31 elements. The emulated device would take minutes for so many threads:
// launches are made and checked but not run.

class Huge : public testing::Test {
 protected:
  static constexpr int64_t kMany = (int64_t{1} << 31) + 77;

  // A view of addresses that nobody reads.
  TensorView View(DType dtype, const Shape& shape) {
    TensorView view = MakeView(reinterpret_cast<void*>(next_), dtype, shape, kEmulated);
    next_ += ByteExtent(view) + 4096;
    next_ -= next_ % 4096;
    return view;
  }
  // The same row everywhere.
  TensorView Repeated(DType dtype, const Shape& shape) {
    TensorView view = View(dtype, shape);
    view.strides[0] = 0;
    return view;
  }
  template <typename Args>
  void ExpectLaunches(const Args& args) {
    const absl::Status valid = Validate(args);
    ASSERT_TRUE(valid.ok()) << Name(Args::kOp) << ": " << valid;
    for (const auto& kernel : KernelsOf<Args>(DeviceKind::kCuda)) {
      KernelContext context{.stream = &device_.stream()};
      if (const absl::Status supported = kernel.supports(context, args); !supported.ok()) {
        EXPECT_TRUE(absl::IsUnimplemented(supported)) << supported;
        EXPECT_NE(kernel.name, "generic") << Name(Args::kOp) << ": " << supported;
        continue;
      }
      const int64_t bytes = kernel.workspace_bytes(context, args);
      ASSERT_GE(bytes, 0) << Name(Args::kOp) << " " << kernel.name;
      Workspace workspace(reinterpret_cast<void*>(int64_t{1} << 46), bytes);
      context.workspace = &workspace;
      const absl::Status status = kernel.run(context, args);
      EXPECT_TRUE(status.ok()) << Name(Args::kOp) << " " << kernel.name << ": " << status;
    }
    EXPECT_TRUE(device_.stream().Synchronize().ok());
  }

  const EmulatedDevice device_{Options{.run_kernels = false}};
  int64_t next_ = int64_t{1} << 40;
};

TEST_F(Huge, ElementWiseOps) {
  for (const Shape& shape : {Shape{kMany, 3}, Shape{3, kMany}, Shape{70'000, 70'000}}) {
    const TensorView a = Repeated(DType::kF16, shape), out = View(DType::kF16, shape);
    ExpectLaunches(AddArgs{.a = a, .b = a, .out = out});
    ExpectLaunches(SiluMulArgs{.gate = a, .up = a, .out = out});
    ExpectLaunches(CastArgs{.x = a, .out = View(DType::kF32, shape)});
  }
  ExpectLaunches(CastArgs{.x = View(DType::kF32, {kMany / 32, 64}),
                          .out = View(DType::kQ8_0, {kMany / 32, 64})});
}

TEST_F(Huge, RowOps) {
  for (const Shape& shape : {Shape{kMany, 2}, Shape{2, kMany}}) {
    const TensorView x = View(DType::kF32, shape);
    ExpectLaunches(SoftmaxArgs{.x = x, .out = View(DType::kF32, shape)});
    RmsNormArgs norm;
    norm.x = x;
    norm.weight = View(DType::kF32, {shape[1]});
    norm.out = View(DType::kF16, shape);
    ExpectLaunches(norm);
  }
  ExpectLaunches(ArgMaxArgs{.x = View(DType::kF32, {kMany, 2}), .out = View(DType::kI32, {kMany})});
}

TEST_F(Huge, Lookups) {
  ExpectLaunches(EmbeddingArgs{.table = View(DType::kF16, {1 << 20, 4096}),
                               .ids = View(DType::kI32, {kMany / 4096 + 1}),
                               .out = View(DType::kF32, {kMany / 4096 + 1, 4096})});
  const Shape shape = {2, 70'000, 120, 128};
  RopeArgs rope;
  rope.x = View(DType::kF16, shape);
  rope.out = View(DType::kF16, shape);
  rope.positions = View(DType::kI32, {2, 120});
  rope.inv_freq = View(DType::kF32, {64});
  ExpectLaunches(rope);
}

TEST_F(Huge, Masks) {
  MaskArgs args;
  args.rule = {.q_len = 70'000, .kv_len = 70'000};
  args.out = View(DType::kBool, {70'000, 70'000});
  ExpectLaunches(args);
  args.rule = {.q_len = 700, .kv_len = 70};
  args.out = View(DType::kBool, {70'000, 1, 700, 70});
  ExpectLaunches(args);
}

TEST_F(Huge, Products) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{70'000, 70'000, 8}, std::array<int64_t, 3>{kMany, 1, 8},
        std::array<int64_t, 3>{1, kMany, 8}, std::array<int64_t, 3>{2, 3, kMany}}) {
    ExpectLaunches(MatMulArgs{.a = View(DType::kF32, {m, k}),
                              .b = View(DType::kF32, {n, k}),
                              .bias = {},
                              .addend = {},
                              .out = View(DType::kF32, {m, n})});
  }
}

TEST_F(Huge, Attention) {
  const Shape few = {70'000, 4, 2, 128}, cache = {70'000, 2, 300, 128};
  AttentionArgs args;
  args.q = View(DType::kF16, few);
  args.k = View(DType::kF16, cache);
  args.v = View(DType::kF16, cache);
  args.out = View(DType::kF16, few);
  ExpectLaunches(args);
  const Shape one = {1, 1, 70'000, 64};
  args.q = View(DType::kF16, {1, 500, 70'000, 64});
  args.k = Repeated(DType::kF16, one);
  args.v = Repeated(DType::kF16, one);
  args.out = View(DType::kF16, {1, 500, 70'000, 64});
  ExpectLaunches(args);

  KvAppendArgs append;
  append.k = View(DType::kF16, {70'000, 2, 1, 128});
  append.v = append.k;
  append.k_cache = View(DType::kF16, cache);
  append.v_cache = View(DType::kF16, cache);
  append.cache_lens = View(DType::kI32, {70'000});
  ExpectLaunches(append);

  const Shape rows = {70'000, 300, 2, 64}, sums = {70'000, 300, 2};
  const std::vector<TensorView> outs = {View(DType::kF32, rows), View(DType::kF32, rows)};
  const std::vector<TensorView> lses = {View(DType::kF32, sums), View(DType::kF32, sums)};
  MergeAttentionArgs merge;
  merge.out_parts = outs;
  merge.lse_parts = lses;
  merge.out = View(DType::kF32, rows);
  ExpectLaunches(merge);
}

}  // namespace
}  // namespace tandem::cases
