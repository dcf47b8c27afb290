// bf16 weights packed in pairs: what the shared cases (tests/cases/matmul_cases.cc) do not state.
#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "cpu/matmul_pairs.h"
#include "tests/matmul_problem.h"

namespace tandem::cpu {
namespace {

class CpuPairsTest : public MatMulFixture {
 protected:
  void SetUp() override {
    if (!DetectCpu().avx512_bf16) GTEST_SKIP() << "this processor has no bf16 dot products";
  }

  // The kernels that take the case on a stream that may use everything.
  std::set<std::string> Kernels(const MatMulArgs& args) {
    CpuStream stream(pool_, DetectCpu());
    std::set<std::string> names;
    for (const auto& kernel : cpu::Kernels<MatMulArgs>()) {
      const bool applies = kernel.applies == nullptr || kernel.applies(args);
      const bool supports = kernel.supports({&stream, nullptr}, args).ok();
      EXPECT_TRUE(applies || !supports) << kernel.name;
      if (supports) names.emplace(kernel.name);
    }
    return names;
  }
  Problem Make(int64_t m, int64_t n, int64_t k, DType a = DType::kF32) {
    return MakeProblem({.m = m, .n = n, .k = k, .a = a, .b = DType::kBF16, .packed = true},
                       *backend_);
  }
};

TEST_F(CpuPairsTest, LayoutIsPairsOfKByPanelsOfFeatures) {
  constexpr int64_t kN = 70, kK = 35;
  const Problem p = Make(1, kN, kK);
  const PairWeights* pairs = PairsOf(p.args);
  ASSERT_NE(pairs, nullptr);
  EXPECT_EQ(pairs->bytes(), 128 * 64 * 2);
  for (int64_t n = 0; n < 128; ++n) {
    for (int64_t k = 0; k < 64; ++k) {
      const BF16 got = pairs->panel(n / 64 * 64)[(k / 2 * 64 + n % 64) * 2 + k % 2];
      const double want = n < kN && k < kK ? Load(p.b.view, 0, n, k) : 0.0;
      ASSERT_EQ(ToFloat(got), want) << n << ", " << k;
    }
  }
}

TEST_F(CpuPairsTest, WholePanelsAndStepsTakeTheBytesOfTheStoredForm) {
  EXPECT_EQ(Make(1, 128, 96).packed->bytes(), 128 * 96 * 2);
}

TEST_F(CpuPairsTest, PacksWhereDotProductsMayBeUsed) {
  const Problem p = MakeProblem({.m = 1, .n = 64, .k = 64, .b = DType::kBF16}, *backend_);
  EXPECT_TRUE(PacksInPlace(*backend_, DType::kBF16));
  EXPECT_FALSE(PacksInPlace(*backend_, DType::kBF16, /*float_activations=*/true));
  EXPECT_FALSE(PacksInPlace(*backend_, DType::kF16));
  EXPECT_TRUE(PacksInPlace(*backend_, DType::kQ8_0));
  const auto floats = PackWeights(*backend_, p.args.b, /*float_activations=*/true);
  ASSERT_TRUE(floats.ok());
  EXPECT_NE((*floats)->format(), PairWeights::kFormat);
  const auto limited = MakeCpuBackend({.threads = 1, .isa = Isa::kAvx2}).value();
  EXPECT_FALSE(PacksInPlace(*limited, DType::kBF16));
  EXPECT_EQ(PackWeights(*limited, p.args.b).status().code(), absl::StatusCode::kUnimplemented);
}

// Any number of rows, and activations that may not be rounded, have a kernel.
TEST_F(CpuPairsTest, EveryCallHasAKernel) {
  for (const DType a : kFloats) {
    for (const int64_t m : {1, 8, 9, 16, 33, 600}) {
      Problem p = Make(m, 40, 50, a);
      for (const bool exact : {true, false}) {
        p.args.float_activations = exact;
        const std::set<std::string> kernels = Kernels(p.args);
        EXPECT_TRUE(kernels.contains("onednn_expand")) << m;
        EXPECT_EQ(kernels.contains("pairs_avx512"), m <= 8) << m;
        const bool rounds = m > 8 && (!exact || a == DType::kBF16);
        EXPECT_EQ(kernels.contains("onednn_pairs"), rounds) << m;
        EXPECT_EQ(kernels.contains("amx_pairs"), rounds && DetectCpu().amx_bf16) << m;
      }
    }
  }
}

TEST_F(CpuPairsTest, EveryNumberOfFewRows) {
  for (int64_t m = 1; m <= 10; ++m) {
    EXPECT_GE(Check({.m = m, .n = 150, .k = 333, .b = DType::kBF16, .bias = true, .packed = true}),
              3);
    if (HasFailure()) return;
  }
}

// A non-finite number among activations or weights reaches what it is multiplied into, and nothing
// else.
TEST_F(CpuPairsTest, NonFiniteNumbersReachTheirRowOrColumnOnly) {
  constexpr int64_t kN = 70, kK = 99;
  for (const float poison : {kNaN, std::numeric_limits<float>::infinity()}) {
    for (const int64_t m : {3, 8, 50}) {
      for (const bool in_weights : {false, true}) {
        Problem p = MakeProblem({.m = m, .n = kN, .k = kK, .b = DType::kBF16}, *backend_);
        Store(in_weights ? p.b.view : p.a.view, (in_weights ? 66 : 2) * kK + 98, poison);
        const auto packed = PackWeights(*backend_, p.args.b);
        ASSERT_TRUE(packed.ok());
        p.args.b = {};
        p.args.b_packed = packed->get();
        p.args.float_activations = false;
        CpuStream stream(pool_, DetectCpu());
        for (const auto& kernel : cpu::Kernels<MatMulArgs>()) {
          if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
          ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
          for (int64_t e = 0; e < m * kN; ++e) {
            const bool poisoned = in_weights ? e % kN == 66 : e / kN == 2;
            ASSERT_EQ(std::isfinite(Load(p.args.out, 0, e / kN, e % kN)), !poisoned)
                << kernel.name << " " << m << " " << e;
          }
        }
      }
    }
  }
}

TEST_F(CpuPairsTest, BitsDoNotDependOnThreads) {
  for (const int64_t m : {1, 7, 40}) {
    Problem p = Make(m, 700, 800);
    p.args.float_activations = false;
    for (const auto& kernel : cpu::Kernels<MatMulArgs>()) {
      CpuStream all(pool_, DetectCpu());
      if (!kernel.supports({&all, nullptr}, p.args).ok()) continue;
      std::vector<uint8_t> first;
      for (const int threads : {1, 2, 7}) {
        CpuStream stream(std::make_shared<ThreadPool>(threads), DetectCpu());
        ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
        if (threads == 1) first = p.out.memory;
        ASSERT_EQ(p.out.memory, first) << kernel.name << " " << m << " " << threads;
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
