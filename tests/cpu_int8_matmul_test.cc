// Packed integer products: what the shared cases (tests/cases/matmul_cases.cc) do not state.
// Extreme values, values that are not finite, the same sums on every instruction set, and the error
// beside that of the formats themselves.
#include "tests/matmul_problem.h"

namespace tandem::cpu {
namespace {

using CpuInt8MatMulTest = MatMulFixture;

constexpr DType kPacked[] = {DType::kQ8_0, DType::kQ4_0};

std::vector<Kernel<MatMulArgs>> Int8Kernels() {
  std::vector<Kernel<MatMulArgs>> kernels;
  for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
    if (kernel.name.find("int8_") == 0) kernels.push_back(kernel);
  }
  return kernels;
}

Problem PackedProblem(int64_t m, int64_t n, int64_t k, DType b, Backend& backend) {
  Problem p = MakeProblem({.m = m, .n = n, .k = k, .b = b, .packed = true}, backend);
  p.args.float_activations = false;
  return p;
}

TEST_F(CpuInt8MatMulTest, OneKernelPerInstructionSet) {
  EXPECT_EQ(Int8Kernels().size(), 4u);
  const Problem p = PackedProblem(1, 32, 64, DType::kQ8_0, *backend_);
  const CpuFeatures all = DetectCpu();
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > all.isa) continue;
    CpuStream stream(pool_, Restrict(all, isa));
    const CpuFeatures& has = stream.features();
    for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
      const bool expected = kernel.name == "int8_avx512vnni" ? has.avx512_vnni
                            : kernel.name == "int8_avxvnni"  ? has.avx_vnni
                            : kernel.name == "int8_avx2"     ? has.isa >= Isa::kAvx2
                                                             : true;
      EXPECT_EQ(kernel.supports({&stream, nullptr}, p.args).ok(), expected) << kernel.name;
    }
  }
}

TEST_F(CpuInt8MatMulTest, FloatActivationsAreRespected) {
  Problem p = PackedProblem(2, 32, 64, DType::kQ4_0, *backend_);
  p.args.float_activations = true;
  CpuStream stream(pool_, DetectCpu());
  for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
    EXPECT_EQ(kernel.supports({&stream, nullptr}, p.args).code(), absl::StatusCode::kUnimplemented)
        << kernel.name;
  }
}

// Every instruction set computes the same integers; only float roundings may differ.
TEST_F(CpuInt8MatMulTest, InstructionSetsAgree) {
  for (const DType b : kPacked) {
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 19}) {
      const Problem p = PackedProblem(m, 70, 1056, b, *backend_);
      CpuStream stream(pool_, DetectCpu());
      std::vector<double> first;
      for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
        if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
        ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < 70; ++j) {
            const double got = Load(p.args.out, 0, i, j);
            const auto at = static_cast<size_t>(i * 70 + j);
            if (at == first.size()) first.push_back(got);
            ASSERT_NEAR(got, first[at], 1e-6 * p.magnitude) << kernel.name << " " << i << " " << j;
          }
        }
      }
    }
  }
}

// Named bug class: saturation of 16-bit sums of byte products, and of the bytes themselves. With
// the largest quants of both signs and activations of one magnitude nothing is rounded, so the
// result is exact.
TEST_F(CpuInt8MatMulTest, ExtremeQuantsDoNotSaturate) {
  for (const DType b : kPacked) {
    for (const int sign : {-1, 1}) {
      Problem p = MakeProblem({.m = 4, .n = 40, .k = 512, .b = b}, *backend_);
      for (int64_t e = 0; e < 40 * 512; e += 32) {
        if (b == DType::kQ8_0) {
          BlockQ8_0& block = p.b.view.As<BlockQ8_0>()[e / 32];
          block.d = ToF16(0.5f);
          std::fill(std::begin(block.q), std::end(block.q),
                    static_cast<int8_t>(sign < 0 ? -128 : 127));
        } else {
          BlockQ4_0& block = p.b.view.As<BlockQ4_0>()[e / 32];
          block.d = ToF16(0.5f);
          std::fill(std::begin(block.q), std::end(block.q), sign < 0 ? 0x00 : 0xFF);
        }
      }
      for (int64_t e = 0; e < 4 * 512; ++e) Store(p.a.view, e, e / 512 % 2 == 0 ? 2.0f : -2.0f);
      const double quant = b == DType::kQ8_0 ? (sign < 0 ? -128 : 127) : (sign < 0 ? -8 : 7);
      auto packed = PackWeights(*backend_, p.args.b);
      ASSERT_TRUE(packed.ok());
      p.args.b_packed = packed->get();
      p.args.float_activations = false;
      CpuStream stream(pool_, DetectCpu());
      for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
        if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
        ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
        for (int64_t i = 0; i < 4; ++i) {
          for (int64_t j = 0; j < 40; ++j) {
            const double want = (i % 2 == 0 ? 2.0 : -2.0) * 0.5 * quant * 512;
            ASSERT_NEAR(Load(p.args.out, 0, i, j), want, std::fabs(want) * 1e-5) << kernel.name;
          }
        }
      }
    }
  }
}

TEST_F(CpuInt8MatMulTest, NonFiniteActivationsPoisonTheirRowOnly) {
  for (const DType b : kPacked) {
    for (const int64_t m : {1, 4, 20}) {
      for (const float poison : {kNaN, std::numeric_limits<float>::infinity(),
                                 -std::numeric_limits<float>::infinity()}) {
        Problem p = PackedProblem(m, 66, 96, b, *backend_);
        Store(p.a.view, (m - 1) * 96 + 71, poison);
        CpuStream stream(pool_, DetectCpu());
        for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
          if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
          ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < 66; ++j) {
              ASSERT_EQ(std::isfinite(Load(p.args.out, 0, i, j)), i != m - 1) << kernel.name;
            }
          }
        }
      }
    }
  }
}

// Activations of any magnitude keep their relative accuracy, as long as the product of the steps of
// activations and weights is a normal number.
TEST_F(CpuInt8MatMulTest, TinyAndHugeActivations) {
  for (const float size : {0x1p-110f, 0x1p-60f, 0x1p60f, 0x1p110f}) {
    Problem p = PackedProblem(2, 40, 64, DType::kQ8_0, *backend_);
    for (int64_t e = 0; e < 2 * 64; ++e) Store(p.a.view, e, size);
    CpuStream stream(pool_, DetectCpu());
    for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
      if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
      ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
      for (int64_t j = 0; j < 40; ++j) {
        double want = 0, magnitude = 0;
        for (int64_t t = 0; t < 64; ++t) {
          want += size * Load(p.b.view, 0, j, t);
          magnitude += size * std::fabs(Load(p.b.view, 0, j, t));
        }
        ASSERT_NEAR(Load(p.args.out, 0, 1, j), want, magnitude * 1e-6) << kernel.name << size;
      }
    }
  }
}

// Rounding activations costs no more than the format has cost already: for weights that were
// normally distributed, the error of the product against fp64 on the dequantised weights is at most
// that of quantising the weights (q8_0 has the same step in the same blocks: equal on average).
TEST_F(CpuInt8MatMulTest, ErrorIsWithinTheFormatsOwn) {
  constexpr int64_t kM = 16, kN = 96, kK = 1024;
  for (const auto& [b, ratio] : {std::pair(DType::kQ8_0, 1.1), std::pair(DType::kQ4_0, 0.1)}) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> original(kN * kK);
    for (float& x : original) x = normal(random);
    Problem p = MakeProblem({.m = kM, .n = kN, .k = kK, .b = b}, *backend_);
    for (int64_t e = 0; e < kN * kK; e += 32) {
      const float* x = &original[static_cast<size_t>(e)];
      float largest = 0;
      for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
      const float d = ToFloat(ToF16(largest / (b == DType::kQ8_0 ? 127.0f : 7.5f)));
      if (b == DType::kQ8_0) {
        BlockQ8_0& block = p.b.view.As<BlockQ8_0>()[e / 32];
        block.d = ToF16(d);
        for (int i = 0; i < 32; ++i) {
          block.q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] / d), -127.0f, 127.0f));
        }
      } else {
        BlockQ4_0& block = p.b.view.As<BlockQ4_0>()[e / 32];
        block.d = ToF16(d);
        const auto quant = [&](float v) {
          return static_cast<int>(std::clamp(std::nearbyint(v / d + 8), 0.0f, 15.0f));
        };
        for (int i = 0; i < 16; ++i) {
          block.q[i] = static_cast<uint8_t>(quant(x[i]) | quant(x[i + 16]) << 4);
        }
      }
    }
    auto packed = PackWeights(*backend_, p.args.b);
    ASSERT_TRUE(packed.ok());
    p.args.b_packed = packed->get();
    p.args.float_activations = false;
    CpuStream stream(pool_, DetectCpu());
    for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
      if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
      ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
      double ours = 0, formats = 0;
      for (int64_t i = 0; i < kM; ++i) {
        for (int64_t j = 0; j < kN; ++j) {
          double stored = 0, before = 0;
          for (int64_t t = 0; t < kK; ++t) {
            const double x = Load(p.a.view, 0, i, t);
            stored += x * Load(p.b.view, 0, j, t);
            before += x * static_cast<double>(original[static_cast<size_t>(j * kK + t)]);
          }
          const double error = Load(p.args.out, 0, i, j) - stored;
          ours += error * error;
          formats += (stored - before) * (stored - before);
        }
      }
      EXPECT_LE(std::sqrt(ours), ratio * std::sqrt(formats)) << kernel.name << " " << Name(b);
    }
  }
}

TEST_F(CpuInt8MatMulTest, SameBitsAtAnyThreadCount) {
  for (const DType b : kPacked) {
    for (const int64_t m : {1, 7, 150}) {
      const Problem p = PackedProblem(m, 300, 256, b, *backend_);
      for (const Kernel<MatMulArgs>& kernel : Int8Kernels()) {
        std::vector<uint8_t> first;
        for (const int threads : {1, 2, 3, 5}) {
          CpuStream stream(std::make_shared<ThreadPool>(threads), DetectCpu());
          if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
          ASSERT_TRUE(RunKernel(kernel, p.args, stream).ok());
          if (first.empty()) first = p.out.memory;
          EXPECT_EQ(first, p.out.memory) << kernel.name << " " << threads;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
