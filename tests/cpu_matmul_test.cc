// The CPU's matrix products against a double-precision loop: every kernel, at every instruction
// set, over shapes, dtypes, layouts and epilogues.
#include "tests/matmul_problem.h"
#include "tests/sanitizers.h"

namespace tandem::cpu {
namespace {

using CpuMatMulTest = MatMulFixture;

TEST_F(CpuMatMulTest, DtypesAndOddSizes) {
  int runs = 0;
  for (const DType a : kFloats) {
    for (const DType b : kWeights) {
      for (const int64_t m : {1, 3, 8, 9, 17}) {
        for (const int64_t n : {1, 7, 33, 130}) {
          for (int64_t k : {1, 31, 64, 97, 256}) {
            if (IsBlockQuantized(b)) {
              if (k % BlockLength(b) != 0) continue;
            } else if (a != DType::kF32 && k != 97) {
              continue;
            }
            runs += Check({.m = m, .n = n, .k = k, .a = a, .b = b, .out = a});
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_GT(runs, 3000);
}

TEST_F(CpuMatMulTest, DecoderLayerShapesReduced) {
  const int64_t n = kSanitized ? 64 : 256;
  const std::vector<int64_t> row_counts =
      kSanitized ? std::vector<int64_t>{1, 8, 33} : std::vector<int64_t>{1, 2, 5, 8, 16, 33, 70};
  for (const DType b : kWeights) {
    for (const int64_t m : row_counts) {
      EXPECT_GE(Check({.m = m, .n = n, .k = 512, .b = b}), 4);
      EXPECT_GE(Check({.m = m,
                       .n = kSanitized ? 24 : 96,
                       .k = WholeBlocks(b, 1408),
                       .a = DType::kF16,
                       .b = b,
                       .out = DType::kF16}),
                4);
      if (HasFailure()) return;
    }
  }
}

TEST_F(CpuMatMulTest, PaddingIsNeitherReadNorWritten) {
  for (const DType a : kFloats) {
    for (const DType b : kWeights) {
      for (const int64_t m : {1, 2, 7, 20}) {
        EXPECT_GE(Check({.m = m,
                         .n = 37,
                         .k = WholeBlocks(b, 96),
                         .a = a,
                         .b = b,
                         .out = a,
                         .a_padding = 5,
                         .b_padding = WholeBlocks(b, 32),
                         .out_padding = 3}),
                  4);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CpuMatMulTest, BFloat16DotProducts) {
  if (!DetectCpu().avx512_bf16) GTEST_SKIP() << "this processor has none";
  for (const int64_t k : {1, 2, 31, 32, 63, 300}) {
    EXPECT_EQ(Check({.m = 25,
                     .n = 70,
                     .k = k,
                     .a = DType::kBF16,
                     .b = DType::kBF16,
                     .out = DType::kBF16,
                     .a_padding = k % 3,
                     .b_padding = k % 5,
                     .a_transposed = k == 63},
                    "onednn_bf16"),
              1);
  }
}

// Rounding is allowed or not; the shared cases hold the results to their bounds.
TEST_F(CpuMatMulTest, ActivationsAreRoundedToBFloat16OnlyIfAllowed) {
  if (!DetectCpu().avx512_bf16) GTEST_SKIP() << "this processor has none";
  CpuStream stream(std::make_shared<ThreadPool>(1), DetectCpu());
  const KernelContext context{&stream, nullptr};
  const auto& kernels = Kernels<MatMulArgs>();
  const auto kernel = std::find_if(kernels.begin(), kernels.end(),
                                   [](const auto& k) { return k.name == "onednn_bf16"; });
  ASSERT_NE(kernel, kernels.end());
  for (const DType a : kFloats) {
    Problem p = MakeProblem({.m = 30, .n = 40, .k = 64, .a = a, .b = DType::kBF16}, *backend_);
    p.args.float_activations = true;
    EXPECT_EQ(kernel->supports(context, p.args).ok(), a == DType::kBF16);
    EXPECT_EQ(kernel->applies(p.args), a == DType::kBF16);
    p.args.float_activations = false;
    EXPECT_TRUE(kernel->applies(p.args));
    ASSERT_TRUE(kernel->supports(context, p.args).ok());
    ASSERT_TRUE(RunKernel(*kernel, p.args, stream).ok());
    // Rows of bf16 multiply to the same bits whatever type they come in.
    Problem rounded =
        MakeProblem({.m = 30, .n = 40, .k = 64, .a = DType::kBF16, .b = DType::kBF16}, *backend_);
    for (int64_t i = 0; i < 30; ++i) {
      for (int64_t j = 0; j < 64; ++j) {
        rounded.a.view.As<BF16>()[i * rounded.a.view.stride(0) + j] =
            ToBF16(static_cast<float>(Load(p.a.view, 0, i, j)));
      }
    }
    rounded.args.b = p.args.b;
    ASSERT_TRUE(RunKernel(*kernel, rounded.args, stream).ok());
    for (int64_t i = 0; i < 30; ++i) {
      for (int64_t j = 0; j < 40; ++j) {
        EXPECT_EQ(Load(p.out.view, 0, i, j), Load(rounded.out.view, 0, i, j)) << i << " " << j;
      }
    }
  }
}

TEST_F(CpuMatMulTest, Epilogues) {
  for (const Activation activation :
       {Activation::kNone, Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    for (const bool bias : {false, true}) {
      for (const bool addend : {false, true}) {
        for (const DType out : kFloats) {
          for (const int64_t m : {1, 19}) {
            EXPECT_GE(Check({.m = m,
                             .n = 70,
                             .k = 64,
                             .out = out,
                             .bias = bias,
                             .addend = addend,
                             .in_place = m == 19,
                             .activation = activation,
                             .alpha = 0.25f,
                             .beta = -1.5f,
                             .out_padding = 1}),
                      4);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(CpuMatMulTest, BetaZeroDoesNotReadTheAddend) {
  for (const int64_t m : {1, 12}) {
    Case c{.m = m, .n = 10, .k = 32, .addend = true, .in_place = true, .beta = 0.0f};
    Problem p = MakeProblem(c, *backend_);
    CpuStream stream(pool_, DetectCpu());
    for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
      if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
      for (int64_t e = 0; e < m * 10; ++e) Store(p.out.view, e, kNaN);
      ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
      ExpectClose(c, p);
    }
  }
}

TEST_F(CpuMatMulTest, Layouts) {
  for (const int64_t m : {1, 6, 40}) {
    for (const DType b : kFloats) {
      EXPECT_GE(Check({.m = m, .n = 77, .k = 65, .b = b, .b_padding = 3, .b_transposed = true}), 2);
      EXPECT_GE(Check({.m = m, .n = 77, .k = 65, .b = b, .a_padding = 2, .a_transposed = true}), 3);
      EXPECT_GE(Check({.m = m,
                       .n = 77,
                       .k = 65,
                       .b = b,
                       .addend = true,
                       .out_padding = 2,
                       .out_transposed = true}),
                3);
      if (HasFailure()) return;
    }
  }
}

TEST_F(CpuMatMulTest, Batches) {
  for (const int64_t m : {1, 4, 25}) {
    for (const DType b : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ5_K}) {
      for (const int broadcast : {0, 1, 2}) {
        EXPECT_GE(Check({.m = m,
                         .n = 67,
                         .k = WholeBlocks(b, 64),
                         .batch = 3,
                         .b = b,
                         .bias = true,
                         .addend = true,
                         .a_padding = 1,
                         .b_padding = WholeBlocks(b, 32),
                         .broadcast_a = broadcast == 1,
                         .broadcast_b = broadcast == 2}),
                  3);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CpuMatMulTest, EmptySums) {
  for (const DType b : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
    for (const int64_t m : {1, 8, 30}) {
      EXPECT_GE(Check({.m = m,
                       .n = 66,
                       .k = 0,
                       .b = b,
                       .bias = true,
                       .addend = true,
                       .activation = Activation::kSilu}),
                3);
    }
    EXPECT_GE(Check({.m = 0, .n = 66, .k = 32, .b = b}), 1);
    EXPECT_GE(Check({.m = 5, .n = 0, .k = 32, .b = b}), 1);
    EXPECT_GE(Check({.m = 20, .n = 0, .k = 0, .b = b}), 1);
  }
}

TEST_F(CpuMatMulTest, NaNAndInfinityPropagate) {
  for (const int64_t m : {1, 20}) {
    for (const float poison : {kNaN, std::numeric_limits<float>::infinity()}) {
      Problem p = MakeProblem({.m = m, .n = 66, .k = 40}, *backend_);
      Store(p.a.view, (m - 1) * 40 + 7, poison);
      CpuStream stream(pool_, DetectCpu());
      for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
        if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
        ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
        for (int64_t j = 0; j < 66; ++j) {
          EXPECT_FALSE(std::isfinite(Load(p.args.out, 0, m - 1, j))) << kernel.name;
          if (m > 1) {
            EXPECT_TRUE(std::isfinite(Load(p.args.out, 0, 0, j))) << kernel.name;
          }
        }
      }
    }
  }
}

TEST_F(CpuMatMulTest, SameBitsAtAnyThreadCount) {
  for (const DType b : kWeights) {
    for (const int64_t m : {1, 7, 150}) {
      const Case c{.m = m, .n = 300, .k = 256, .b = b, .bias = true};
      Problem p = MakeProblem(c, *backend_);
      for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
        std::vector<uint8_t> first;
        for (const int threads : {1, 2, 3, 5}) {
          CpuStream stream(std::make_shared<ThreadPool>(threads), DetectCpu());
          if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
          ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
          if (first.empty()) first = p.out.memory;
          EXPECT_EQ(first, p.out.memory) << c << " " << kernel.name << " " << threads;
        }
      }
    }
  }
}

TEST_F(CpuMatMulTest, KernelsSayWhyNot) {
  CpuStream scalar(pool_, Restrict(DetectCpu(), Isa::kScalar));
  Problem p = MakeProblem({.m = 9, .n = 4, .k = 32}, *backend_);
  for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
    const absl::Status status = kernel.supports({&scalar, nullptr}, p.args);
    if (kernel.name.find("gemv") == 0 || kernel.name.find("avx") != std::string::npos) {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << kernel.name;
      EXPECT_FALSE(status.message().empty());
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
