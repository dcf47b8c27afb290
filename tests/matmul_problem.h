// Matrix products to be tried on the CPU's kernels: operands with NaN in all padding and guard
// bytes around what is written, a double-precision result, and a fixture that runs every kernel at
// every instruction set. A failing case prints itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "core/ops/matmul.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "tests/reference/super_blocks.h"

namespace tandem::cpu {

inline constexpr uint8_t kGuard = 0xA5;
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

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

inline void Store(const TensorView& view, int64_t offset, float x) {
  DispatchFloat(view.dtype, [&]<typename T>() { view.As<T>()[offset] = FromFloat<T>(x); });
}

// The element of a view at (z, i, j); z = 0 for rank 2.
inline double Load(const TensorView& view, int64_t z, int64_t i, int64_t j) {
  int64_t offset = view.stride(-2) * i + view.stride(-1) * j;
  if (view.rank() == 3 && view.dim(0) > 1) offset += view.stride(0) * z;
  if (view.dtype == DType::kQ8_0) {
    const BlockQ8_0& block = view.As<BlockQ8_0>()[offset / 32];
    return static_cast<double>(ToFloat(block.d)) * block.q[offset % 32];
  }
  if (BlockLength(view.dtype) == 256) {
    const char* base = static_cast<const char*>(view.data) + ByteOffset(view.dtype, offset);
    return reference::ReadSuperBlock(view.dtype, base, static_cast<int>(offset % 256));
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
inline Operand MakeOperand(std::mt19937& random, DType dtype, int64_t batch, int64_t rows,
                           int64_t columns, int64_t padding, bool transposed) {
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
    } else if (IsBlockQuantized(dtype)) {  // every bit of the quants and scales at random
      DispatchBlock(dtype, [&]<typename Block>() {
        if constexpr (Block::kLength == 256) {
          Block& b = operand.view.As<Block>()[e / Block::kLength];
          auto* raw = reinterpret_cast<uint8_t*>(&b);
          for (size_t i = 0; i < sizeof(Block); ++i) raw[i] = static_cast<uint8_t>(byte(random));
          b.d = ToF16(pad ? kNaN : normal(random) / 256);
          if constexpr (requires { b.dmin; }) b.dmin = ToF16(pad ? kNaN : normal(random) / 64);
        }
      });
    } else {
      Store(operand.view, e, pad ? kNaN : normal(random));
    }
  }
  if (transposed) {
    operand.view = Transpose(operand.view, operand.view.rank() - 2, operand.view.rank() - 1);
  }
  return operand;
}

inline double Activate(Activation activation, double x) {
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

inline Problem MakeProblem(const Case& c, Backend& backend) {
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
  args.float_activations = true;  // the shared cases (tests/cases) have both
  if (c.packed) {
    auto packed = PackWeights(backend, args.b);
    EXPECT_TRUE(packed.ok()) << packed.status();
    if (packed.ok()) p.packed = std::move(*packed);
    args.b_packed = p.packed.get();
    args.b = TensorView();
  }
  std::vector<double> weights(static_cast<size_t>(c.n * c.k));
  for (int64_t z = 0; z < std::max<int64_t>(c.batch, 1); ++z) {
    for (int64_t j = 0; j < c.n; ++j) {
      for (int64_t t = 0; t < c.k; ++t) weights[j * c.k + t] = Load(p.b.view, z, j, t);
    }
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double exact = 0, magnitude = 0;
        float naive = 0;
        for (int64_t t = 0; t < c.k; ++t) {
          const double x = Load(p.a.view, z, i, t), w = weights[j * c.k + t];
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

inline double Epsilon(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : (dtype == DType::kF16 ? 0x1p-11 : 0x1p-8);
}

// Runs a kernel with a workspace of exactly the size it asks for.
inline absl::Status RunKernel(const Kernel<MatMulArgs>& kernel, const MatMulArgs& args,
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
  absl::Status status = kernel.run(context, args);
  EXPECT_TRUE(workspace.ok());
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(base[bytes + i], kGuard) << "workspace overrun";
  return status;
}

class MatMulFixture : public ::testing::Test {
 protected:
  MatMulFixture() {
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

inline constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};
inline constexpr DType kWeights[] = {DType::kF32,  DType::kF16,  DType::kBF16,
                                     DType::kQ8_0, DType::kQ4_0, DType::kQ4_K,
                                     DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0};

// `k` as whole blocks.
inline int64_t WholeBlocks(DType dtype, int64_t k) {
  return (k + BlockLength(dtype) - 1) / BlockLength(dtype) * BlockLength(dtype);
}

}  // namespace tandem::cpu
