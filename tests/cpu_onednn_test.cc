// Packed weights, prepared primitives, and what running a matrix product allocates.
#include "cpu/onednn_cache.h"
#include "tests/allocation_counter.h"
#include "tests/matmul_problem.h"

namespace tandem::cpu {
namespace {

using CpuOneDnnTest = MatMulFixture;

TEST_F(CpuOneDnnTest, PackedWeights) {
  for (const DType b : kFloats) {
    for (const int64_t m : {1, 9, 64, 75}) {
      for (const int64_t n : {1, 64, 70}) {
        const Case c = {.m = m,
                        .n = n,
                        .k = 45,
                        .a = DType::kF16,
                        .b = b,
                        .bias = true,
                        .b_padding = 3,
                        .b_transposed = m == 9,
                        .packed = true};
        // Panels in f32 have one kernel; pairs, of rows that are contiguous, several.
        if (PacksInPlace(*backend_, b) && !c.b_transposed) {
          EXPECT_GT(Check(c), 1);
        } else {
          EXPECT_EQ(Check(c), 1);
        }
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_EQ(Check({.m = 3, .n = 20, .k = 0, .packed = true}), 1);
}

TEST_F(CpuOneDnnTest, PackingChecksItsArgument) {
  Problem p = MakeProblem({.m = 1, .n = 4, .k = 32}, *backend_);
  TensorView bad = p.args.a;
  bad.data = nullptr;
  EXPECT_EQ(PackWeights(*backend_, bad).status().code(), absl::StatusCode::kInvalidArgument);
  bad = p.args.a;
  bad.shape.rank = 3;
  EXPECT_EQ(PackWeights(*backend_, bad).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CpuOneDnnTest, ForeignPackedWeightsAreRefused) {
  struct Foreign final : PackedWeights {
    std::string_view format() const override { return "foreign"; }
    int64_t bytes() const override { return 0; }
  } foreign;
  Problem p = MakeProblem({.m = 20, .n = 4, .k = 32}, *backend_);
  p.args.b = TensorView();
  p.args.b_packed = &foreign;
  CpuStream stream(pool_, DetectCpu());
  for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
    EXPECT_EQ(kernel.supports({&stream, nullptr}, p.args).code(), absl::StatusCode::kUnimplemented)
        << kernel.name;
  }
}

// After the first call (which prepares oneDNN's primitives) nothing is allocated. oneDNN's own
// execute() builds a small argument map each time; its kernels are measured to show that this is a
// few small objects per tile, not copies of matrices.
TEST_F(CpuOneDnnTest, RunAllocatesNothing) {
  for (const DType b : {DType::kF32, DType::kF16, DType::kQ8_0}) {
    for (const int64_t m : {1, 5, 40}) {
      const Problem p = MakeProblem({.m = m, .n = 200, .k = 160, .b = b}, *backend_);
      CpuStream stream(pool_, DetectCpu());
      for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
        KernelContext context{&stream, nullptr};
        if (!kernel.supports(context, p.args).ok()) continue;
        const int64_t bytes = kernel.workspace_bytes(context, p.args);
        const auto scratch = backend_->allocator().Allocate(bytes).value();
        int64_t counts[2];
        for (int64_t& count : counts) {
          Workspace workspace(scratch->data(), bytes);
          context.workspace = &workspace;
          const int64_t before = AllocationCount();
          ASSERT_TRUE(kernel.run(context, p.args).ok());
          count = AllocationCount() - before;
        }
        if (kernel.name.find("onednn") == 0) {
          EXPECT_LE(counts[1], 32) << kernel.name;  // 4 tiles
        } else {
          EXPECT_EQ(counts[1], 0) << kernel.name;
        }
      }
    }
  }
}

TEST_F(CpuOneDnnTest, PrimitivesAreKeptAndBounded) {
  OneDnnCache cache;
  const auto first = cache.Get(16, 64, DType::kF32, 2);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(cache.Get(16, 64, DType::kF32, 2).value(), *first);
  EXPECT_NE(cache.Get(16, 64, DType::kF32, 3).value(), *first);
  EXPECT_NE(cache.Get(8, 64, DType::kF32, 2).value(), *first);
  EXPECT_EQ(cache.size(), 3);
  for (size_t i = 0; i < OneDnnCache::kCapacity + 5; ++i) {
    ASSERT_TRUE(cache.Get(8, 1 + static_cast<int64_t>(i), DType::kF32, 1).ok());
  }
  EXPECT_EQ(cache.size(), OneDnnCache::kCapacity);
  EXPECT_NE(cache.Get(16, 64, DType::kF32, 2).value(), *first);  // evicted, made again
  // An evicted primitive stays usable while somebody holds it.
  std::vector<float> a(16 * 64, 1.0f), panel(64 * 64, 0.5f), tile(16 * 64), scratch(65536);
  auto* aligned =
      reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63});
  ASSERT_LE((*first)->scratch_bytes(), 65536);
  ASSERT_TRUE((*first)->Execute(a.data(), panel.data(), tile.data(), aligned, 1).ok());
  EXPECT_EQ(tile, std::vector<float>(16 * 64, 32.0f));
}

}  // namespace
}  // namespace tandem::cpu
