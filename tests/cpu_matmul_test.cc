// The CPU's matrix products against a double-precision loop: every kernel, at every instruction
// set, over shapes, dtypes, layouts and epilogues.
//
// Each case puts NaN into all padding of its inputs and guard bytes around its output and its
// workspace. A failing case prints itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "core/ops/matmul.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/onednn_cache.h"
#include "cpu/stream.h"
#include "tests/allocation_counter.h"

namespace tandem::cpu {
namespace {

constexpr uint8_t kGuard = 0xA5;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A matrix product to be tried. Paddings are extra elements per row.
struct Case {
  int64_t m = 1, n = 1, k = 1;
  int64_t batch = 0;  // 0: rank 2
  DType a = DType::kF32, b = DType::kF32, out = DType::kF32;
  bool bias = false, addend = false, in_place = false;
  Activation activation = Activation::kNone;
  float alpha = 1.0f, beta = 1.0f;
  int64_t a_padding = 0, b_padding = 0, out_padding = 0;
  bool b_transposed = false;    // memory is [K, N]
  bool a_transposed = false;    // memory is [K, M]
  bool out_transposed = false;  // memory is [N, M]
  bool broadcast_a = false, broadcast_b = false;
  bool packed = false;  // b only as b_packed

  friend std::ostream& operator<<(std::ostream& s, const Case& c) {
    s << "{.m=" << c.m << ", .n=" << c.n << ", .k=" << c.k << ", .batch=" << c.batch
      << ", .a=" << Name(c.a) << ", .b=" << Name(c.b) << ", .out=" << Name(c.out);
    const auto flag = [&](bool on, const char* name) {
      if (on) s << ", ." << name;
    };
    flag(c.bias, "bias");
    flag(c.addend, "addend");
    flag(c.in_place, "in_place");
    flag(c.b_transposed, "b_transposed");
    flag(c.a_transposed, "a_transposed");
    flag(c.out_transposed, "out_transposed");
    flag(c.broadcast_a, "broadcast_a");
    flag(c.broadcast_b, "broadcast_b");
    flag(c.packed, "packed");
    return s << ", .activation=" << static_cast<int>(c.activation) << ", .alpha=" << c.alpha
             << ", .beta=" << c.beta << ", paddings " << c.a_padding << " " << c.b_padding << " "
             << c.out_padding << "}";
  }
};

// Storage of one operand with guard bytes on both sides.
struct Operand {
  std::vector<uint8_t> memory;
  TensorView view;

  bool GuardsIntact() const {
    const auto is_guard = [](uint8_t byte) { return byte == kGuard; };
    return std::all_of(memory.begin(), memory.begin() + 64, is_guard) &&
           std::all_of(memory.end() - 64, memory.end(), is_guard);
  }
};

void Store(const TensorView& view, int64_t offset, float x) {
  DispatchFloat(view.dtype, [&]<typename T>() { view.As<T>()[offset] = FromFloat<T>(x); });
}

// The element of a view at (z, i, j); z = 0 for rank 2.
double Load(const TensorView& view, int64_t z, int64_t i, int64_t j) {
  int64_t offset = view.stride(-2) * i + view.stride(-1) * j;
  if (view.rank() == 3 && view.dim(0) > 1) offset += view.stride(0) * z;
  if (view.dtype == DType::kQ8_0) {
    const BlockQ8_0& block = view.As<BlockQ8_0>()[offset / 32];
    return static_cast<double>(ToFloat(block.d)) * block.q[offset % 32];
  }
  if (view.dtype == DType::kQ4_0) {
    const BlockQ4_0& block = view.As<BlockQ4_0>()[offset / 32];
    const int64_t at = offset % 32;
    const int nibble = at < 16 ? block.q[at] & 15 : block.q[at - 16] >> 4;
    return static_cast<double>(ToFloat(block.d)) * (nibble - 8);
  }
  return DispatchFloat(view.dtype,
                       [&]<typename T>() -> double { return ToFloat(view.As<T>()[offset]); });
}

// A [batch,] rows x columns matrix of random values; every byte that is not an element is NaN (or
// guard).
Operand MakeOperand(std::mt19937& random, DType dtype, int64_t batch, int64_t rows, int64_t columns,
                    int64_t padding, bool transposed) {
  const int64_t block = BlockLength(dtype);
  if (transposed) std::swap(rows, columns);
  const int64_t stride = columns + padding;
  const int64_t batches = std::max<int64_t>(batch, 1);
  const int64_t elements = batches * rows * stride;
  Operand operand;
  const size_t bytes = static_cast<size_t>(elements / block * BlockBytes(dtype));
  operand.memory.assign(bytes + 128 + 64, kGuard);
  // The vector's own alignment is 16 at least; the data starts at a multiple of 64 for determinism.
  auto* base = operand.memory.data() + 64;
  operand.view = batch > 0 ? MakeView(base, dtype, {batch, rows, columns})
                           : MakeView(base, dtype, {rows, columns});
  operand.view.strides[operand.view.rank() - 2] = stride;
  if (batch > 0) operand.view.strides[0] = stride * rows;
  operand.memory.resize(bytes + 128);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> byte(0, 255);
  for (int64_t e = 0; e < elements; e += block) {
    const bool pad = e % stride >= columns;
    if (dtype == DType::kQ8_0) {
      BlockQ8_0& b = operand.view.As<BlockQ8_0>()[e / 32];
      b.d = ToF16(pad ? kNaN : normal(random) / 64);
      for (int8_t& q : b.q) q = static_cast<int8_t>(byte(random) - 128);
    } else if (dtype == DType::kQ4_0) {
      BlockQ4_0& b = operand.view.As<BlockQ4_0>()[e / 32];
      b.d = ToF16(pad ? kNaN : normal(random) / 4);
      for (uint8_t& q : b.q) q = static_cast<uint8_t>(byte(random));
    } else {
      Store(operand.view, e, pad ? kNaN : normal(random));
    }
  }
  if (transposed) {
    operand.view = Transpose(operand.view, operand.view.rank() - 2, operand.view.rank() - 1);
  }
  return operand;
}

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return x > 0 ? x : 0.0;
    case Activation::kNone:
      break;
  }
  return x;
}

// One case: operands, the double-precision result, and the error a plain f32 loop makes.
struct Problem {
  Operand a, b, bias, addend, out;
  std::unique_ptr<PackedWeights> packed;
  MatMulArgs args;
  std::vector<double> expected;
  double naive_error = 0, scale = 0, magnitude = 0;  // magnitude: largest sum of |a * b|
};

Problem MakeProblem(const Case& c, Backend& backend) {
  Problem p;
  std::mt19937 random(20240607);
  p.a =
      MakeOperand(random, c.a, c.broadcast_a ? 1 : c.batch, c.m, c.k, c.a_padding, c.a_transposed);
  p.b =
      MakeOperand(random, c.b, c.broadcast_b ? 0 : c.batch, c.n, c.k, c.b_padding, c.b_transposed);
  p.bias = MakeOperand(random, DType::kF16, 0, 1, c.n, 0, false);
  p.addend = MakeOperand(random, DType::kBF16, c.batch, c.m, c.n, 3, false);
  p.out = MakeOperand(random, c.out, c.batch, c.m, c.n, c.out_padding, c.out_transposed);
  MatMulArgs& args = p.args;
  args.a = p.a.view;
  args.b = p.b.view;
  args.out = p.out.view;
  if (c.bias) args.bias = Select(p.bias.view, 0, 0);
  if (c.addend) args.addend = c.in_place ? p.out.view : p.addend.view;
  args.alpha = c.alpha;
  args.beta = c.beta;
  args.activation = c.activation;
  if (c.packed) {
    auto packed = PackWeights(backend, args.b);
    EXPECT_TRUE(packed.ok()) << packed.status();
    if (packed.ok()) p.packed = std::move(*packed);
    args.b_packed = p.packed.get();
    args.b = TensorView();
  }
  for (int64_t z = 0; z < std::max<int64_t>(c.batch, 1); ++z) {
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double exact = 0, magnitude = 0;
        float naive = 0;
        for (int64_t t = 0; t < c.k; ++t) {
          const double x = Load(p.a.view, z, i, t), w = Load(p.b.view, z, j, t);
          exact += x * w;
          magnitude += std::fabs(x * w);
          naive += static_cast<float>(x) * static_cast<float>(w);
        }
        const double bias = c.bias ? Load(p.bias.view, 0, 0, j) : 0.0;
        const double extra = c.addend && c.beta != 0 ? c.beta * Load(args.addend, z, i, j) : 0.0;
        const double value = Activate(c.activation, c.alpha * exact + bias) + extra;
        p.expected.push_back(value);
        const double plain =
            Activate(c.activation, static_cast<float>(c.alpha * naive + bias)) + extra;
        p.magnitude = std::max(p.magnitude, std::fabs(c.alpha) * magnitude);
        p.naive_error = std::max(p.naive_error, std::fabs(plain - value));
        p.scale =
            std::max({p.scale, std::fabs(value), std::fabs(extra), std::fabs(c.alpha * exact)});
      }
    }
  }
  return p;
}

double Epsilon(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : (dtype == DType::kF16 ? 0x1p-11 : 0x1p-8);
}

// Runs a kernel with a workspace of exactly the size it asks for.
absl::Status RunKernel(const Kernel<MatMulArgs>& kernel, const MatMulArgs& args,
                       CpuStream& stream) {
  KernelContext context{&stream, nullptr};
  const int64_t bytes = kernel.workspace_bytes(context, args);
  std::vector<uint8_t> memory(static_cast<size_t>(bytes) + 192, kGuard);
  auto* base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) &
                                          ~uintptr_t{63});
  // NaN everywhere: a kernel that reads scratch it has not written shows.
  std::memset(base, 0xFF, static_cast<size_t>(bytes));
  Workspace workspace(base, bytes);
  context.workspace = &workspace;
  const absl::Status status = kernel.run(context, args);
  EXPECT_TRUE(workspace.ok());
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(base[bytes + i], kGuard) << "workspace overrun";
  return status;
}

class CpuMatMulTest : public ::testing::Test {
 protected:
  CpuMatMulTest() {
    auto backend = MakeCpuBackend({.threads = 2, .isa = std::nullopt});
    EXPECT_TRUE(backend.ok());
    backend_ = std::move(*backend);
  }

  // Runs every kernel that supports the case at each instruction set this machine has; returns the
  // number of runs.
  int Check(const Case& c, const std::string& only = "") {
    SCOPED_TRACE(::testing::PrintToString(c));
    const Problem p = MakeProblem(c, *backend_);
    EXPECT_TRUE(Validate(p.args).ok()) << Validate(p.args);
    const std::vector<uint8_t> before = p.out.memory;
    int runs = 0;
    for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
      if (isa > DetectCpu().isa) continue;
      CpuStream stream(pool_, Restrict(DetectCpu(), isa));
      for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
        if (!only.empty() && kernel.name != only) continue;
        if (!kernel.supports({&stream, nullptr}, p.args).ok()) continue;
        // A kernel of a lower instruction set runs the same code on a better stream.
        if (isa != DetectCpu().isa && runs > 0 && kernel.name == "reference") continue;
        SCOPED_TRACE(std::string(kernel.name) + " on " + std::string(Name(isa)));
        std::memcpy(const_cast<uint8_t*>(p.out.memory.data()), before.data(), before.size());
        const absl::Status status = RunKernel(kernel, p.args, stream);
        EXPECT_TRUE(status.ok()) << status;
        ExpectClose(c, p);
        EXPECT_TRUE(p.out.GuardsIntact());
        ExpectPaddingUntouched(c, p, before);
        ++runs;
        if (HasFailure()) return runs;
      }
    }
    std::memcpy(const_cast<uint8_t*>(p.out.memory.data()), before.data(), before.size());
    return runs;
  }

  static void ExpectClose(const Case& c, const Problem& p) {
    // The contract: twice the error of the plain f32 loop, and one rounding of the output. The loop
    // may be lucky when there are few outputs: one rounding of the sum of magnitudes is always
    // allowed. The last term is f32 rounding in the epilogue.
    const double bound = 2 * p.naive_error + 0x1p-24 * p.magnitude + 0x1p-21 * p.scale;
    int64_t at = 0;
    for (int64_t z = 0; z < std::max<int64_t>(c.batch, 1); ++z) {
      for (int64_t i = 0; i < c.m; ++i) {
        for (int64_t j = 0; j < c.n; ++j, ++at) {
          const double got = Load(p.args.out, z, i, j);
          const double want = p.expected[at];
          const double allowed = bound + Epsilon(c.out) * std::fabs(want);
          if (!(std::fabs(got - want) <= allowed)) {
            ADD_FAILURE() << "out[" << z << ", " << i << ", " << j << "]: expected " << want
                          << " +- " << allowed << ", got " << got;
            return;
          }
        }
      }
    }
  }

  static void ExpectPaddingUntouched(const Case& c, const Problem& p,
                                     const std::vector<uint8_t>& before) {
    if (c.out_padding == 0) return;
    const int64_t row = c.out_transposed ? c.m : c.n;
    const int64_t bytes = BlockBytes(c.out);
    for (int64_t e = 0; e < static_cast<int64_t>(before.size() - 128) / bytes; ++e) {
      if (e % (row + c.out_padding) < row) continue;
      if (std::memcmp(&before[64 + e * bytes], &p.out.memory[64 + e * bytes],
                      static_cast<size_t>(bytes)) != 0) {
        ADD_FAILURE() << "padding of out was written, element " << e;
        return;
      }
    }
  }

  std::unique_ptr<Backend> backend_;
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(2);
};

constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr DType kWeights[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};

TEST_F(CpuMatMulTest, DtypesAndOddSizes) {
  int runs = 0;
  for (const DType a : kFloats) {
    for (const DType b : kWeights) {
      for (const int64_t m : {1, 3, 8, 9, 17}) {
        for (const int64_t n : {1, 7, 33, 130}) {
          for (int64_t k : {1, 31, 64, 97}) {
            if (IsBlockQuantized(b)) {
              if (k % 32 != 0) continue;
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
  for (const DType b : kWeights) {
    for (const int64_t m : {1, 2, 5, 8, 16, 33, 70}) {
      EXPECT_GE(Check({.m = m, .n = 256, .k = 512, .b = b}), 4);
      EXPECT_GE(Check({.m = m, .n = 96, .k = 1408, .a = DType::kF16, .b = b, .out = DType::kF16}),
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
                         .k = 96,
                         .a = a,
                         .b = b,
                         .out = a,
                         .a_padding = 5,
                         .b_padding = 32,
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
                    "onednn_expand"),
              1);
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
    for (const DType b : {DType::kF32, DType::kF16, DType::kQ8_0}) {
      for (const int broadcast : {0, 1, 2}) {
        EXPECT_GE(Check({.m = m,
                         .n = 67,
                         .k = 64,
                         .batch = 3,
                         .b = b,
                         .bias = true,
                         .addend = true,
                         .a_padding = 1,
                         .b_padding = 32,
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

TEST_F(CpuMatMulTest, PackedWeights) {
  for (const DType b : kFloats) {
    for (const int64_t m : {1, 9, 64, 75}) {
      for (const int64_t n : {1, 64, 70}) {
        EXPECT_EQ(Check({.m = m,
                         .n = n,
                         .k = 45,
                         .a = DType::kF16,
                         .b = b,
                         .bias = true,
                         .b_padding = 3,
                         .b_transposed = m == 9,
                         .packed = true}),
                  1);
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_EQ(Check({.m = 3, .n = 20, .k = 0, .packed = true}), 1);
}

TEST_F(CpuMatMulTest, PackingChecksItsArgument) {
  Problem p = MakeProblem({.m = 1, .n = 4, .k = 32, .b = DType::kQ8_0}, *backend_);
  EXPECT_EQ(PackWeights(*backend_, p.args.b).status().code(), absl::StatusCode::kUnimplemented);
  TensorView bad = p.args.a;
  bad.data = nullptr;
  EXPECT_EQ(PackWeights(*backend_, bad).status().code(), absl::StatusCode::kInvalidArgument);
  bad = p.args.a;
  bad.shape.rank = 3;
  EXPECT_EQ(PackWeights(*backend_, bad).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CpuMatMulTest, ForeignPackedWeightsAreRefused) {
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
TEST_F(CpuMatMulTest, RunAllocatesNothing) {
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

TEST_F(CpuMatMulTest, PrimitivesAreKeptAndBounded) {
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
