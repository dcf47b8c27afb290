// The kernel "cublaslt": what it leaves to the library and what to the kernel that follows, which
// calls share a plan, and what they cost once they are planned.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "cuda/backend.h"
#include "cuda/blas/device_blas.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"
#include "tests/allocation_counter.h"

namespace tandem::cuda {
namespace {

using ::testing::HasSubstr;

const Kernel<MatMulArgs>* KernelNamed(std::string_view name) {
  for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
    if (kernel.name == name) return &kernel;
  }
  return nullptr;
}

class CublasLtMatMul : public testing::Test {
 protected:
  CudaStream& stream() { return static_cast<CudaStream&>(*stream_); }
  EmulatedRuntime& runtime() { return static_cast<EmulatedRuntime&>(stream().runtime()); }
  BlasPlanCache::Stats stats() { return stream().blas()->plans().stats(); }
  KernelContext context() { return {.stream = stream_.get(), .workspace = &workspace_}; }

  TensorView Make(DType dtype, const Shape& shape) {
    tensors_.push_back(*Tensor::Allocate(backend_->allocator(), dtype, shape));
    const TensorView view = tensors_.back();
    EXPECT_TRUE(runtime().Fill(stream().handle(), view.data, 0, ByteExtent(view)).ok());
    return view;
  }
  // [m, k] by [n, k].
  MatMulArgs Args(int64_t m, int64_t n, int64_t k, DType dtype = DType::kF16) {
    MatMulArgs args;
    args.a = Make(dtype, {m, k});
    args.b = Make(dtype, {n, k});
    args.out = Make(dtype, {m, n});
    return args;
  }
  // Runs it; how many kernels of ours it took beside the library's, or why it cannot run.
  std::string Followed(const MatMulArgs& args) {
    EXPECT_TRUE(Validate(args).ok()) << Validate(args);
    const absl::Status supports = kernel_.supports(context(), args);
    if (!supports.ok()) return supports.ToString();
    const int64_t bytes = kernel_.workspace_bytes(context(), args);
    const std::shared_ptr<Buffer> scratch = *backend_->allocator().Allocate(bytes);
    workspace_ = Workspace(scratch->data(), bytes);
    const int64_t before = runtime().calls();
    const absl::Status status = kernel_.run(context(), args);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(workspace_.bytes_used(), bytes);
    const int64_t followed = runtime().calls() - before - 1;
    EXPECT_TRUE(stream().Synchronize().ok());
    return std::to_string(followed);
  }

  const std::unique_ptr<Backend> backend_ = *MakeCudaBackend({.device = kEmulatedDevice});
  const std::unique_ptr<Stream> stream_ = *backend_->CreateStream();
  const Kernel<MatMulArgs>& kernel_ = *KernelNamed("cublaslt");
  Workspace workspace_;
  std::vector<Tensor> tensors_;
};

TEST_F(CublasLtMatMul, WhatTheLibraryDoesAlone) {
  MatMulArgs args = Args(8, 16, 32);
  EXPECT_EQ(Followed(args), "0");
  args.bias = Make(DType::kF16, {16});
  args.addend = args.out;
  args.beta = 0.5f;
  EXPECT_EQ(Followed(args), "0") << "bias and residual";
  args.addend = {};
  args.activation = Activation::kGelu;
  EXPECT_EQ(Followed(args), "0");
  args.activation = Activation::kNone;
  args.out = Transpose(Make(DType::kF16, {16, 8}), 0, 1);
  EXPECT_EQ(Followed(args), "1") << "columns of out together";
  args = Args(8, 16, 32, DType::kBF16);
  args.out = Make(DType::kF32, {8, 16});
  EXPECT_EQ(Followed(args), "0") << "f32 out of bf16";
  args.addend = Make(DType::kBF16, {8, 16});
  args.beta = 0.0f;
  EXPECT_EQ(Followed(args), "0") << "an addend that is not used";
}

TEST_F(CublasLtMatMul, WhatIsDoneAfterIt) {
  const MatMulArgs plain = Args(8, 16, 32);
  const auto with = [&](auto change) {
    MatMulArgs args = plain;
    change(args);
    return Followed(args);
  };
  EXPECT_EQ(with([](MatMulArgs& a) { a.activation = Activation::kSilu; }), "1");
  EXPECT_EQ(with([](MatMulArgs& a) { a.activation = Activation::kRelu; }), "1");
  EXPECT_EQ(with([&](MatMulArgs& a) {
              a.activation = Activation::kGelu;
              a.addend = a.out;
            }),
            "1");
  EXPECT_EQ(with([&](MatMulArgs& a) {
              a.activation = Activation::kGelu;
              a.out = Make(DType::kF32, {8, 16});
            }),
            "1");
  EXPECT_EQ(with([&](MatMulArgs& a) { a.bias = Make(DType::kF32, {16}); }), "1");
  EXPECT_EQ(with([&](MatMulArgs& a) { a.addend = Make(DType::kF32, {8, 16}); }), "1");
  EXPECT_EQ(with([&](MatMulArgs& a) { a.out = Make(DType::kBF16, {8, 16}); }), "1");
}

TEST_F(CublasLtMatMul, WhatItDeclines) {
  MatMulArgs args = Args(8, 16, 32);
  args.alpha = 0.0f;
  EXPECT_THAT(Followed(args), HasSubstr("alpha other than 0"));
  args.alpha = 1.0f;
  args.b = Make(DType::kQ8_0, {16, 32});
  EXPECT_THAT(Followed(args), HasSubstr("needs b in f32, f16 or bf16, got q8_0"));
  EXPECT_FALSE(kernel_.applies(args));
  EXPECT_THAT(Followed(Args(8, 16, 0)), HasSubstr("needs a product to compute"));
  args = Args(8, 16, 32);
  args.a = Make(DType::kF16, {8, 64});
  args.a.shape = {8, 32};
  args.a.strides[1] = 2;  // every other element
  EXPECT_THAT(Followed(args), HasSubstr("needs a with stride 1"));
}

TEST_F(CublasLtMatMul, MixedTypesAreRoundedFirst) {
  MatMulArgs args = Args(8, 16, 32, DType::kBF16);
  args.a = Make(DType::kF32, {8, 32});
  EXPECT_EQ(Followed(args), "1") << "a to bf16, then the library";
  args.float_activations = true;
  EXPECT_THAT(Followed(args), HasSubstr("would round a from f32 to bf16"));
  args.a = Make(DType::kF16, {8, 32});
  args.b = Make(DType::kF32, {16, 32});
  EXPECT_EQ(Followed(args), "2") << "exactly to f32; out in bf16 is finished";
  args = Args(8, 16, 32);
  args.a = Make(DType::kF32, {8, 32});
  EXPECT_EQ(Followed(args), "2") << "scaled to f16; the scales are taken out again";
}

// Rows far beyond the range of f16 on either side, and rows of zeros, infinities and NaN.
TEST_F(CublasLtMatMul, RowsOfAnyMagnitudeSurviveF16) {
  constexpr int64_t kRows = 7, kK = 40;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::array<float, kRows> magnitudes = {
      1.0f, 3e30f, 2e-30f, 1e-44f, 0.0f, kInf, std::numeric_limits<float>::quiet_NaN()};
  std::vector<float> a(kRows * kK), out(kRows * 8);
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t k = 0; k < kK; ++k) a[static_cast<size_t>(m * kK + k)] = static_cast<float>(k % 5);
    for (int64_t k = 0; k < kK; ++k) {
      float& x = a[static_cast<size_t>(m * kK + k)];
      const float magnitude = magnitudes[static_cast<size_t>(m)];
      x = std::isfinite(magnitude) ? x * magnitude : k == 7 ? magnitude : 1e20f;
    }
  }
  MatMulArgs args = Args(kRows, 8, kK);
  args.a = Make(DType::kF32, {kRows, kK});
  args.out = Make(DType::kF32, {kRows, 8});
  std::vector<F16> ones(8 * kK, ToF16(1.0f));
  const StreamHandle handle = stream().handle();
  ASSERT_TRUE(runtime().Copy(handle, args.a.data, a.data(), kRows * kK * 4).ok());
  ASSERT_TRUE(runtime().Copy(handle, args.b.data, ones.data(), 8 * kK * 2).ok());
  ASSERT_EQ(Followed(args), "2");
  ASSERT_TRUE(runtime().Copy(handle, out.data(), args.out.data, kRows * 8 * 4).ok());
  for (int64_t n = 0; n < 8; ++n) {
    const auto got = [&](int64_t m) { return out[static_cast<size_t>(m * 8 + n)]; };
    EXPECT_EQ(got(0), 80.0f);  // eight times 0 + 1 + 2 + 3 + 4: exact
    EXPECT_NEAR(got(1) / 3e30f, 80.0f, 0.1f);
    EXPECT_NEAR(got(2) / 2e-30f, 80.0f, 0.1f);
    EXPECT_NEAR(got(3), 80 * 1e-44f, 2e-44f);
    EXPECT_EQ(got(4), 0.0f);
    EXPECT_EQ(got(5), kInf);
    EXPECT_TRUE(std::isnan(got(6)));
  }
}

TEST_F(CublasLtMatMul, OnePlanPerShape) {
  ASSERT_EQ(Followed(Args(8, 16, 32)), "0");
  EXPECT_EQ(stats().misses, 1);
  ASSERT_EQ(Followed(Args(8, 16, 32)), "0");
  EXPECT_EQ(stats().misses, 1) << "other tensors of the same shape";
  // Batches whose rows follow each other, by the same weights: one product of [8, 32].
  for (const auto& [batch, rows] : {std::pair(4, 2), std::pair(8, 1), std::pair(1, 8)}) {
    MatMulArgs args = Args(8, 16, 32);
    args.a = Make(DType::kF16, {batch, rows, 32});
    args.out = Make(DType::kF16, {batch, rows, 16});
    ASSERT_EQ(Followed(args), "0");
    EXPECT_EQ(stats().misses, 1);
  }
  MatMulArgs args = Args(8, 16, 32);
  args.a.data = static_cast<char*>(Make(DType::kF16, {9, 32}).data) + 2;
  ASSERT_EQ(Followed(args), "0");
  EXPECT_EQ(stats().misses, 2) << "another alignment";
}

TEST_F(CublasLtMatMul, PlannedCallsAllocateNothing) {
  MatMulArgs args = Args(8, 16, 32);
  ASSERT_EQ(Followed(args), "0");
  const int64_t before = AllocationCount();
  EXPECT_TRUE(kernel_.supports(context(), args).ok());
  EXPECT_GT(kernel_.workspace_bytes(context(), args), 0);
  EXPECT_EQ(AllocationCount(), before);
}

TEST_F(CublasLtMatMul, ASmallWorkspaceIsAnError) {
  MatMulArgs args = Args(8, 16, 32);
  const std::shared_ptr<Buffer> scratch = *backend_->allocator().Allocate(1024);
  workspace_ = Workspace(scratch->data(), kernel_.workspace_bytes(context(), args) - 1);
  const absl::Status status = kernel_.run(context(), args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(status), HasSubstr("workspace"));
}

}  // namespace
}  // namespace tandem::cuda
