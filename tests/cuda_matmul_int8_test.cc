// Products of quantised weights with activations of 8 bits on the emulated device: which kernel
// runs, exact sums, NaN, and the same bits every time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/block_elements.h"
#include "core/status.h"
#include "core/tensor.h"
#include "cuda/backend.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

using ::testing::HasSubstr;

constexpr DType kFormats[] = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_K,
                              DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Random bits, but scales that are powers of two, or small: products are then whole multiples of a
// power of two, and their sums are exact in f32 in any order.
template <typename Block>
Block RandomBlock(std::mt19937& random) {
  Block block;
  uint8_t bytes[sizeof(Block)];
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  std::memcpy(&block, bytes, sizeof(Block));
  block.d = ToF16(0.125f);
  if constexpr (requires { block.dmin; }) block.dmin = ToF16(0.5f);
  if constexpr (std::is_same_v<Block, BlockQ6_K>) {
    for (int8_t& scale : block.scales) scale = static_cast<int8_t>(scale / 8);
  }
  return block;
}

class Int8MatMul : public testing::Test {
 protected:
  CudaStream& stream() { return static_cast<CudaStream&>(*stream_); }
  EmulatedRuntime& runtime() { return static_cast<EmulatedRuntime&>(stream().runtime()); }
  KernelContext context() { return {.stream = stream_.get(), .workspace = &workspace_}; }

  TensorView Make(DType dtype, const Shape& shape, const void* from = nullptr) {
    tensors_.push_back(*Tensor::Allocate(backend_->allocator(), dtype, shape));
    const TensorView view = tensors_.back();
    if (from != nullptr) {
      EXPECT_TRUE(runtime().Copy(stream().handle(), view.data, from, ByteExtent(view)).ok());
    }
    return view;
  }
  std::vector<float> Read(const TensorView& view) {
    std::vector<float> values(static_cast<size_t>(view.dim(0) * view.dim(1)));
    EXPECT_TRUE(runtime().Copy(stream().handle(), values.data(), view.data, ByteExtent(view)).ok());
    EXPECT_TRUE(stream().Synchronize().ok());
    return values;
  }

  // Weights [n, k], and their values.
  TensorView RandomWeights(DType dtype, int64_t n, int64_t k) {
    return DispatchBlock(dtype, [&]<typename Block>() {
      std::vector<Block> blocks;
      weights_.clear();
      for (int64_t i = 0; i < n * k / Block::kLength; ++i) {
        blocks.push_back(RandomBlock<Block>(random_));
        for (int e = 0; e < Block::kLength; ++e) weights_.push_back(BlockElement(blocks.back(), e));
      }
      return Make(dtype, {n, k}, blocks.data());
    });
  }
  // Whole numbers; every block of 32 has 127 as its largest: rounding to 8 bits changes nothing.
  TensorView WholeActivations(int64_t m, int64_t k) {
    activations_.assign(static_cast<size_t>(m * k), 0.0f);
    for (float& x : activations_) x = static_cast<float>(static_cast<int>(random_() % 255) - 127);
    for (size_t i = 5; i < activations_.size(); i += 32) activations_[i] = i % 64 == 5 ? 127 : -127;
    return Make(DType::kF32, {m, k}, activations_.data());
  }
  MatMulArgs Args(DType dtype, int64_t m, int64_t n, int64_t k) {
    MatMulArgs args;
    args.b = RandomWeights(dtype, n, k);
    args.a = WholeActivations(m, k);
    args.out = Make(DType::kF32, {m, n});
    return args;
  }

  // The first kernel that takes it.
  const Kernel<MatMulArgs>* KernelFor(const MatMulArgs& args) {
    for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
      if (kernel.applies != nullptr && !kernel.applies(args)) continue;
      if (kernel.supports(context(), args).ok()) return &kernel;
    }
    return nullptr;
  }
  std::string NameFor(const MatMulArgs& args) {
    const Kernel<MatMulArgs>* kernel = KernelFor(args);
    return kernel == nullptr ? "none" : std::string(kernel->name);
  }
  std::string Reason(std::string_view name, const MatMulArgs& args) {
    for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
      if (kernel.name == name) return Message(kernel.supports(context(), args));
    }
    return "no such kernel";
  }
  std::vector<float> Run(const MatMulArgs& args) {
    EXPECT_TRUE(Validate(args).ok()) << Validate(args);
    const Kernel<MatMulArgs>& kernel = *KernelFor(args);
    const int64_t bytes = kernel.workspace_bytes(context(), args);
    const std::shared_ptr<Buffer> scratch = *backend_->allocator().Allocate(bytes);
    EXPECT_TRUE(runtime().Fill(stream().handle(), scratch->data(), 0xFF, bytes).ok());
    workspace_ = Workspace(scratch->data(), bytes);
    const absl::Status status = kernel.run(context(), args);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(workspace_.bytes_used(), bytes);
    return Read(args.out);
  }

  const std::unique_ptr<Backend> backend_ = *MakeCudaBackend({.device = kEmulatedDevice});
  const std::unique_ptr<Stream> stream_ = *backend_->CreateStream();
  Workspace workspace_;
  std::vector<Tensor> tensors_;
  std::mt19937 random_{20261121};
  std::vector<float> weights_, activations_;
};

TEST_F(Int8MatMul, TheKernelsOfEveryFormatAndNumberOfRows) {
  for (const DType dtype : kFormats) {
    SCOPED_TRACE(std::string(Name(dtype)));
    for (const auto& [m, kernel] :
         {std::pair(1, "int8_dot"), std::pair(2, "int8_dot"), std::pair(3, "int8_mma"),
          std::pair(8, "int8_mma"), std::pair(16, "int8_mma"), std::pair(512, "expanded")}) {
      EXPECT_EQ(NameFor(Args(dtype, m, 5, 256)), kernel) << m << " rows";
    }
    MatMulArgs args = Args(dtype, 5, 5, 256);
    args.float_activations = true;
    EXPECT_EQ(NameFor(args), "expanded") << "without rounding";
  }
}

TEST_F(Int8MatMul, WhatTheyDecline) {
  MatMulArgs args = Args(DType::kQ4_0, 1, 8, 256);
  args.float_activations = true;
  EXPECT_THAT(Reason("int8_dot", args), HasSubstr("float_activations"));
  EXPECT_THAT(Reason("int8_mma", args), HasSubstr("float_activations"));
  args.float_activations = false;
  args.b.data = static_cast<char*>(args.b.data) + 18;  // one block on
  EXPECT_THAT(Reason("int8_dot", args), HasSubstr("16 bytes"));
  EXPECT_THAT(Reason("int8_mma", args), HasSubstr("16 bytes"));
  EXPECT_THAT(Reason("int8_dot", Args(DType::kQ4_0, 3, 8, 256)), HasSubstr("at most 2 rows"));
  EXPECT_THAT(Reason("int8_dot", Args(DType::kTQ2_0, 2, 1, 1 << 17)), HasSubstr("shared memory"));
  EXPECT_THAT(Reason("expanded", args), HasSubstr("more than 256 rows, got 1"));
  args.b = Make(DType::kF16, {8, 256});
  EXPECT_THAT(Reason("expanded", args), HasSubstr("block format, got f16"));
  EXPECT_THAT(Reason("int8_mma", args), HasSubstr("block format, got f16"));
}

// Every element is to be right to the last bit. Odd N, K of one block and of parts of a piece, rows
// of weights on any even byte.
TEST_F(Int8MatMul, WholeNumbersAreExact) {
  for (const DType dtype : kFormats) {
    const int64_t block = BlockLength(dtype);
    for (const int64_t m : {1, 2, 3, 8, 11, 30, 70}) {
      for (const int64_t k : {block, block * 3, block == 32 ? int64_t{1184} : int64_t{1280}}) {
        const int64_t n = m == 3 ? 37 : 19;
        SCOPED_TRACE(std::string(Name(dtype)) + ", m " + std::to_string(m) + ", k " +
                     std::to_string(k));
        const MatMulArgs args = Args(dtype, m, n, k);
        const std::vector<float> out = Run(args);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0.0;
            for (int64_t t = 0; t < k; ++t) {
              sum += double{activations_[static_cast<size_t>(i * k + t)]} *
                     weights_[static_cast<size_t>(j * k + t)];
            }
            ASSERT_EQ(out[static_cast<size_t>(i * n + j)], sum) << i << ", " << j;
          }
        }
      }
    }
  }
}

TEST_F(Int8MatMul, TheSameBitsEveryTime) {
  for (const DType dtype : kFormats) {
    for (const int64_t m : {1, 2, 8, 40}) {
      MatMulArgs args = Args(dtype, m, 50, 2048);
      for (float& x : activations_) x = static_cast<float>(random_()) * 1e-9f - 2.0f;
      args.a = Make(DType::kF32, {m, 2048}, activations_.data());
      const std::vector<float> once = Run(args), again = Run(args);
      EXPECT_EQ(std::memcmp(once.data(), again.data(), once.size() * sizeof(float)), 0)
          << Name(dtype) << ", " << m << " rows";
    }
  }
}

// A NaN or an infinity makes its row NaN and no other; subnormal and huge rows keep their scale.
TEST_F(Int8MatMul, RowsThatAreNotFiniteAndRowsOfAnyMagnitude) {
  constexpr int64_t kN = 21, kK = 512;
  for (const DType dtype : kFormats) {
    for (const int64_t m : {2, 6, 12}) {
      SCOPED_TRACE(std::string(Name(dtype)) + ", m " + std::to_string(m));
      MatMulArgs args = Args(dtype, m, kN, kK);
      const std::vector<float> plain = Run(args);
      const auto row = [&](int64_t i) { return activations_.begin() + i * kK; };
      row(0)[77] = kNaN;
      for (int64_t t = 0; t < kK; ++t) row(1)[t] *= 0x1p+100f;
      if (m > 2) {
        row(2)[kK - 1] = -kInfinity;
        for (int64_t t = 0; t < kK; ++t) row(3)[t] *= 0x1p-130f;
        for (int64_t t = 0; t < kK; ++t) row(4)[t] = 0.0f;
      }
      args.a = Make(DType::kF32, {m, kK}, activations_.data());
      const std::vector<float> out = Run(args);
      for (int64_t j = 0; j < kN; ++j) {
        const auto at = [&](const std::vector<float>& v, int64_t i) {
          return v[static_cast<size_t>(i * kN + j)];
        };
        EXPECT_TRUE(std::isnan(at(out, 0)));
        EXPECT_EQ(at(out, 1), at(plain, 1) * 0x1p+100f);
        if (m == 2) continue;
        EXPECT_TRUE(std::isnan(at(out, 2)));
        const float tiny = at(plain, 3) * 0x1p-130f;
        EXPECT_NEAR(at(out, 3), tiny, 1e-4 * std::fabs(tiny) + 1e-36);
        EXPECT_EQ(at(out, 4), 0.0f);
        EXPECT_EQ(at(out, 5), at(plain, 5));
      }
    }
  }
}

// 64 MiB of weights in f32 are a panel: of 262144 elements of K, 64 columns. Bias, addend and out
// are cut as the weights are.
TEST_F(Int8MatMul, ExpandedPanelByPanel) {
  constexpr int64_t kM = 5, kN = 131, kK = 1 << 18;
  std::vector<BlockTQ2_0> blocks(kN * kK / 256);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto n = static_cast<int>(i / (kK / 256));
    for (uint8_t& q : blocks[i].q) q = 0x55;  // zeros
    blocks[i].q[0] = 0x56;                    // a one
    blocks[i].d = ToF16(static_cast<float>(n));
  }
  std::vector<float> ones(kM * kK, 1.0f), bias(kN), addend(kM * kN);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = 0.5f * static_cast<float>(i);
  for (size_t i = 0; i < addend.size(); ++i) addend[i] = static_cast<float>(i);
  MatMulArgs args;
  args.a = Make(DType::kF32, {kM, kK}, ones.data());
  args.b = Make(DType::kTQ2_0, {kN, kK}, blocks.data());
  args.bias = Make(DType::kF32, {kN}, bias.data());
  args.addend = Make(DType::kF32, {kM, kN}, addend.data());
  args.out = Make(DType::kF32, {kM, kN});
  args.float_activations = true;
  ASSERT_EQ(NameFor(args), "expanded");
  const std::vector<float> out = Run(args);
  constexpr int64_t kOnes = kK / 256;  // in a row
  for (size_t i = 0; i < out.size(); ++i) {
    const auto n = static_cast<float>(i % kN);
    ASSERT_EQ(out[i], n * static_cast<float>(kOnes) + 0.5f * n + static_cast<float>(i)) << i;
  }
}

TEST_F(Int8MatMul, ASmallWorkspaceIsAnError) {
  const MatMulArgs args = Args(DType::kQ4_0, 8, 16, 64);
  const std::shared_ptr<Buffer> scratch = *backend_->allocator().Allocate(64);
  workspace_ = Workspace(scratch->data(), 64);
  const absl::Status status = KernelFor(args)->run(context(), args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(status), HasSubstr("workspace"));
}

}  // namespace
}  // namespace tandem::cuda
