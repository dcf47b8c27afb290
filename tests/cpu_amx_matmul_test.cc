// Matrix products on tiles: what the shared cases (tests/cases/matmul_cases.cc) do not state.
#include <algorithm>
#include <vector>

#include "tests/matmul_problem.h"

namespace tandem::cpu {
namespace {

class CpuAmxMatMulTest : public MatMulFixture {
 protected:
  void SetUp() override {
    if (!DetectCpu().amx_bf16) GTEST_SKIP() << "this processor or system has no tiles";
  }

  static const Kernel<MatMulArgs>& Find(std::string_view name) {
    const auto& kernels = Kernels<MatMulArgs>();
    return *std::find_if(kernels.begin(), kernels.end(),
                         [&](const auto& kernel) { return kernel.name == name; });
  }
  // The kernel for weights of that type.
  static const Kernel<MatMulArgs>& For(DType b) {
    if (IsBlockQuantized(b)) return Find("amx_packed");
    return Find(b == DType::kF16 ? "amx_f16" : "amx_bf16");
  }
  Problem Make(int64_t m, int64_t n, int64_t k, DType b) {
    Problem p =
        MakeProblem({.m = m, .n = n, .k = k, .b = b, .packed = IsBlockQuantized(b)}, *backend_);
    p.args.float_activations = false;
    return p;
  }
};

constexpr DType kWeights[] = {DType::kBF16, DType::kF16, DType::kQ8_0, DType::kQ4_K};

TEST_F(CpuAmxMatMulTest, NeedsTilesRoundedActivationsAndManyRows) {
  for (const DType b : kWeights) {
    Problem p = Make(40, 64, 256, b);
    CpuStream stream(pool_, DetectCpu()), limited(pool_, Restrict(DetectCpu(), Isa::kAvx2));
    EXPECT_TRUE(For(b).supports({&stream, nullptr}, p.args).ok());
    EXPECT_TRUE(For(b).applies(p.args));
    EXPECT_FALSE(For(b).supports({&limited, nullptr}, p.args).ok());
    p.args.float_activations = true;
    EXPECT_FALSE(For(b).supports({&stream, nullptr}, p.args).ok());
    EXPECT_FALSE(For(b).applies(p.args));
    EXPECT_FALSE(For(b).supports({&stream, nullptr}, Make(8, 64, 256, b).args).ok());
  }
}

// With activations and weights that bf16 holds, and integer sums below 2^24, nothing is rounded.
TEST_F(CpuAmxMatMulTest, ExactWhereBFloat16IsExact) {
  constexpr int64_t kM = 49, kN = 150, kK = 1056;
  Problem p = MakeProblem({.m = kM, .n = kN, .k = kK, .b = DType::kQ8_0}, *backend_);
  std::vector<int> a(kM * kK), b(kN * kK);
  for (size_t e = 0; e < a.size(); ++e) {
    a[e] = static_cast<int>(e * 7 % 11) - 5;
    Store(p.a.view, static_cast<int64_t>(e), static_cast<float>(a[e]));
  }
  for (size_t e = 0; e < b.size(); ++e) {
    BlockQ8_0& block = p.b.view.As<BlockQ8_0>()[e / 32];
    b[e] = static_cast<int>(e * 29 % 256) - 128;
    block.d = ToF16(1.0f);
    block.q[e % 32] = static_cast<int8_t>(b[e]);
  }
  const auto packed = PackWeights(*backend_, p.args.b);
  ASSERT_TRUE(packed.ok());
  p.args.b_packed = packed->get();
  p.args.float_activations = false;
  CpuStream stream(pool_, DetectCpu());
  ASSERT_TRUE(RunKernel(Find("amx_packed"), p.args, stream).ok());
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      int sum = 0;
      for (int64_t t = 0; t < kK; ++t) {
        sum += a[static_cast<size_t>(i * kK + t)] * b[static_cast<size_t>(j * kK + t)];
      }
      ASSERT_EQ(Load(p.args.out, 0, i, j), sum) << i << ", " << j;
    }
  }
}

// f16 weights are taken whole: 11 bits, of which bf16 holds 8. So are bf16 activations; f32 ones to
// 16 bits.
TEST_F(CpuAmxMatMulTest, F16WeightsAreExact) {
  constexpr int64_t kM = 49, kN = 150, kK = 600;
  for (const DType a_dtype : {DType::kBF16, DType::kF32}) {
    Problem p = MakeProblem({.m = kM, .n = kN, .k = kK, .a = a_dtype, .b = DType::kF16}, *backend_);
    const int most = a_dtype == DType::kBF16 ? 3 : 5;
    std::vector<int> a(kM * kK), b(kN * kK);
    for (size_t e = 0; e < a.size(); ++e) {
      a[e] = static_cast<int>(e * 7 % static_cast<size_t>(2 * most + 1)) - most;
      Store(p.a.view, static_cast<int64_t>(e), static_cast<float>(a[e]));
    }
    for (size_t e = 0; e < b.size(); ++e) {
      b[e] = static_cast<int>(e * 2029 % 4095) - 2047;
      Store(p.b.view, static_cast<int64_t>(e), static_cast<float>(b[e]));
    }
    p.args.float_activations = false;
    CpuStream stream(pool_, DetectCpu());
    ASSERT_TRUE(RunKernel(Find("amx_f16"), p.args, stream).ok());
    for (int64_t i = 0; i < kM; ++i) {
      for (int64_t j = 0; j < kN; ++j) {
        int sum = 0;
        for (int64_t t = 0; t < kK; ++t) {
          sum += a[static_cast<size_t>(i * kK + t)] * b[static_cast<size_t>(j * kK + t)];
        }
        ASSERT_EQ(Load(p.args.out, 0, i, j), sum) << Name(a_dtype) << " " << i << ", " << j;
      }
    }
  }
}

// An activation in f32 keeps 16 bits: a product by 1 is off by at most 2^-16 of it, where rounding
// to f16, which the contract allows, gives 2^-11, and to bf16 2^-8.
TEST_F(CpuAmxMatMulTest, F32ActivationsOfF16WeightsKeep16Bits) {
  constexpr int64_t kM = 33, kN = 64, kK = 64;
  Problem p = MakeProblem({.m = kM, .n = kN, .k = kK, .b = DType::kF16}, *backend_);
  for (int64_t e = 0; e < kN * kK; ++e) Store(p.b.view, e, e % kK == e / kK ? 1.0f : 0.0f);
  p.args.float_activations = false;
  CpuStream stream(pool_, DetectCpu());
  ASSERT_TRUE(RunKernel(Find("amx_f16"), p.args, stream).ok());
  double worst = 0.0;
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      const double x = p.a.view.As<float>()[i * kK + j];
      if (x == 0.0) continue;
      worst = std::max(worst, std::abs(Load(p.args.out, 0, i, j) - x) / std::abs(x));
    }
  }
  EXPECT_LE(worst, 0x1p-16);
  EXPECT_GT(worst, 0x1p-20);  // else nothing was rounded: not this kernel
}

TEST_F(CpuAmxMatMulTest, NonFiniteActivationsPoisonTheirRowOnly) {
  for (const DType b : kWeights) {
    for (const float poison : {kNaN, std::numeric_limits<float>::infinity()}) {
      Problem p = Make(50, 70, 768, b);
      Store(p.a.view, 48 * 768 + 700, poison);
      CpuStream stream(pool_, DetectCpu());
      ASSERT_TRUE(RunKernel(For(b), p.args, stream).ok());
      for (int64_t i = 0; i < 50; ++i) {
        for (int64_t j = 0; j < 70; ++j) {
          ASSERT_EQ(std::isfinite(Load(p.args.out, 0, i, j)), i != 48) << Name(b) << " " << i;
        }
      }
    }
  }
}

// So many rows that blocks of 512 leave one tile to the last.
TEST_F(CpuAmxMatMulTest, TheLastBlockOfRowsMayBeOneTile) {
  constexpr int64_t kM = 31 * 512 + 1, kFew = 40, kN = 70, kK = 64;
  for (const DType b : {DType::kBF16, DType::kF16, DType::kQ8_0}) {
    const Problem p = Make(kM, kN, kK, b);
    MatMulArgs few = p.args;
    few.a = Slice(p.args.a, 0, kM - kFew, kFew);
    few.out = Slice(p.args.out, 0, kM - kFew, kFew);
    CpuStream stream(pool_, DetectCpu());
    ASSERT_TRUE(RunKernel(For(b), p.args, stream).ok());
    std::vector<double> all;
    for (int64_t e = 0; e < kFew * kN; ++e) all.push_back(Load(few.out, 0, e / kN, e % kN));
    ASSERT_TRUE(RunKernel(For(b), few, stream).ok());
    for (int64_t e = 0; e < kFew * kN; ++e) {
      ASSERT_EQ(Load(few.out, 0, e / kN, e % kN), all[static_cast<size_t>(e)]) << Name(b) << e;
    }
  }
}

// How panels are shared out depends on the number of threads; sums do not.
TEST_F(CpuAmxMatMulTest, BitsDoNotDependOnThreads) {
  constexpr int64_t kM = 66, kN = 700;
  for (const DType b : kWeights) {
    const Problem p = Make(kM, kN, 1280, b);
    std::vector<double> first;
    for (const int threads : {1, 2, 7}) {
      CpuStream stream(std::make_shared<ThreadPool>(threads), DetectCpu());
      ASSERT_TRUE(RunKernel(For(b), p.args, stream).ok());
      for (int64_t e = 0; e < kM * kN; ++e) {
        const double got = Load(p.args.out, 0, e / kN, e % kN);
        if (threads == 1) {
          first.push_back(got);
        } else {
          ASSERT_EQ(got, first[static_cast<size_t>(e)]) << Name(b) << " " << threads;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
