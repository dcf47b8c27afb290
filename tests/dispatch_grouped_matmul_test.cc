// Grouped matrix products have the bits of what they stand for: of matmul by the kernel of the same
// name, product by product, and with silu_multiply of silu_mul on these in f32. Over the shared
// cases, on both devices.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "tests/cases/grouped_matmul_cases.h"
#include "tests/emulated_context.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

// The silu_mul kernel whose vectors a kernel of the CPU ends with; "": that of the machine.
std::string SiluMulOf(std::string_view kernel) {
  if (kernel.starts_with("int8_")) return "";
  if (kernel.ends_with("scalar")) return "simd_scalar";
  return kernel.find("avx512") != std::string_view::npos ? "simd_avx512" : "simd_avx2";
}

class GroupedMatMulBits : public testing::TestWithParam<DeviceKind> {
 protected:
  GroupedMatMulBits() {
    ContextOptions options;
    options.threads = 2;
    options.kernel_profile = "off";
    options.device = GetParam();
    options.cuda_emulated = GetParam() == DeviceKind::kCuda;
    auto context = Context::Create(options);
    EXPECT_TRUE(context.ok()) << context.status();
    context_ = *std::move(context);
  }

  Tensor Allocate(DType dtype, const Shape& shape) {
    auto tensor = AllocateOn(*context_, GetParam(), dtype, shape);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    return *std::move(tensor);
  }
  std::vector<char> BytesOf(const TensorView& view) {
    auto there = CopyTo(*context_, DeviceKind::kCpu, view);
    EXPECT_TRUE(there.ok()) << there.status();
    EXPECT_TRUE(Synchronize(*context_, GetParam()).ok());
    const char* bytes = static_cast<const char*>(there->view().data);
    return {bytes, bytes + ByteExtent(there->view())};
  }
  void Force(OpKind op, const std::string& kernel) {
    ASSERT_TRUE(context_->ForceKernel(op, kernel).ok()) << Name(op) << " " << kernel;
  }

  // What `args` leaves in out i, by the parts it stands for.
  Tensor ByParts(const GroupedMatMulArgs& args, int i) {
    MatMulArgs product = args.ProductArgs(i);
    Tensor out = Allocate(product.out.dtype, product.out.shape);
    if (!args.gated()) {
      product.out = out.view();
      EXPECT_TRUE(MatMulInto(*context_, product).ok()) << MatMulInto(*context_, product);
      return out;
    }
    const Tensor gate = Allocate(DType::kF32, out.shape()), up = Allocate(DType::kF32, out.shape());
    for (const auto& [index, tensor] : {std::pair(0, &gate), std::pair(1, &up)}) {
      product = args.ProductArgs(index);
      product.out = tensor->view();
      EXPECT_TRUE(MatMulInto(*context_, product).ok()) << MatMulInto(*context_, product);
    }
    const SiluMulArgs end = {gate.view(), up.view(), out.view()};
    EXPECT_TRUE(SiluMulInto(*context_, end).ok());
    return out;
  }

  // True if the kernel took the case.
  bool CompareOne(const GroupedMatMulCase& c, const std::string& kernel) {
    const Operands initial = c.MakeOperands();
    EXPECT_TRUE(initial.status().ok()) << initial.status();
    ContextDevice& device = *context_->device(GetParam());
    auto operands = DeviceOperands::Upload(initial, *device.backend, *device.stream);
    EXPECT_TRUE(operands.ok()) << operands.status();
    Views views = operands->views();
    std::vector<std::unique_ptr<PackedWeights>> packed;
    for (const std::string& name : c.PackedOperands()) {
      auto weights = PackWeights(*context_, views(name));
      if (!weights.ok()) continue;
      packed.push_back(*std::move(weights));
      views.AddPacked(name, packed.back().get());
    }
    GroupedMatMulArgs args = c.Bind(views);
    std::vector<Tensor> outs;
    for (int i = 0; i < (args.gated() ? 1 : args.num_products); ++i) {
      TensorView& out = args.products[static_cast<size_t>(i)].out;
      outs.push_back(Allocate(out.dtype, out.shape));
      out = outs.back().view();
    }
    Force(OpKind::kGroupedMatMul, kernel);
    const absl::Status status = GroupedMatMulInto(*context_, args);
    if (absl::IsUnimplemented(status)) return false;
    EXPECT_TRUE(status.ok()) << status;
    Force(OpKind::kMatMul, kernel);
    if (GetParam() == DeviceKind::kCpu) Force(OpKind::kSiluMul, SiluMulOf(kernel));
    for (size_t i = 0; i < outs.size(); ++i) {
      const Tensor parts = ByParts(args, static_cast<int>(i));
      EXPECT_TRUE(BytesOf(outs[i].view()) == BytesOf(parts.view())) << "out" << i;
    }
    return true;
  }

  std::unique_ptr<Context> context_;
};

TEST_P(GroupedMatMulBits, AreThoseOfItsParts) {
  int64_t kernels = 0;
  const std::vector<GroupedMatMulCase> cases =
      GroupedMatMulCase::Grid(kSanitized ? GridSize::kShort : GridSize::kFull);
  for (const std::string_view kernel : KernelNames(OpKind::kGroupedMatMul, GetParam())) {
    if (kernel == "sequential" || kernel == "reference") continue;
    ++kernels;
    int64_t plain = 0, gated = 0;
    for (const GroupedMatMulCase& c : cases) {
      SCOPED_TRACE(std::string(kernel) + ": " + CaseText(c));
      if (CompareOne(c, std::string(kernel))) ++(c.gated() ? gated : plain);
      if (HasFailure()) return;
    }
    // Not every machine has every instruction set; what it has takes some cases.
    EXPECT_EQ(plain > 0, gated > 0) << kernel;
    if (kernel.ends_with("scalar") || GetParam() == DeviceKind::kCuda) {
      EXPECT_GT(plain, 2) << kernel;
    }
  }
  EXPECT_GE(kernels, GetParam() == DeviceKind::kCpu ? 3 : 1);
}

INSTANTIATE_TEST_SUITE_P(Devices, GroupedMatMulBits,
                         testing::Values(DeviceKind::kCpu, DeviceKind::kCuda),
                         [](const auto& param) { return std::string(Name(param.param)); });

class GroupedMatMulOp : public testing::Test {
 protected:
  void SetUp() override {
    ContextOptions options;
    options.threads = 1;
    options.kernel_profile = "off";
    context_ = *Context::Create(options);
    args_.a = MakeView(a_.data(), DType::kF32, {2, 64});
    args_.num_products = 2;
    for (size_t i = 0; i < 2; ++i) {
      for (size_t j = 0; j < b_[i].size(); ++j) b_[i][j] = static_cast<float>(j % 7) - 3.0f;
      args_.products[i].b = MakeView(b_[i].data(), DType::kF32, {5, 64});
    }
  }

  std::unique_ptr<Context> context_;
  std::vector<float> a_ = std::vector<float>(128, 0.25f);
  std::vector<float> b_[2] = {std::vector<float>(320), std::vector<float>(320)};
  GroupedMatMulArgs args_;
};

TEST_F(GroupedMatMulOp, TheValueFormReturnsEveryOut) {
  auto outs = GroupedMatMul(*context_, args_);
  ASSERT_TRUE(outs.ok()) << outs.status();
  ASSERT_EQ(outs->size(), 2u);
  MatMulArgs product = args_.ProductArgs(1);
  const auto single = MatMul(*context_, product);
  ASSERT_TRUE(single.ok());
  for (int i = 0; i < 10; ++i) EXPECT_EQ((*outs)[1].As<float>()[i], single->As<float>()[i]);
  args_.epilogue = GroupEpilogue::kSiluMultiply;
  outs = GroupedMatMul(*context_, args_);
  ASSERT_TRUE(outs.ok()) << outs.status();
  ASSERT_EQ(outs->size(), 1u);
  EXPECT_EQ((*outs)[0].view().shape, (Shape{2, 5}));
  args_.products[1].b = {};
  EXPECT_EQ(GroupedMatMul(*context_, args_).status().code(), absl::StatusCode::kInvalidArgument);
  args_.num_products = 9;
  EXPECT_EQ(GroupedMatMul(*context_, args_).status().code(), absl::StatusCode::kInvalidArgument);
}

// Packed weights beside the stored ones are left out of a call that is carried elsewhere; alone
// they keep it where it is.
TEST(GroupedMatMulTransfer, GoesWithTheStoredWeights) {
  const auto context = EmulatedContext(/*forced=*/false);
  GroupedMatMulCase c = {.m = 4,
                         .n = 48,
                         .n_rest = 32,
                         .k = 64,
                         .b_dtype = DType::kQ8_0,
                         .last_b_dtype = DType::kQ8_0,
                         .float_activations = false};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  Views views(prepared->operands);
  std::vector<std::unique_ptr<PackedWeights>> packed;
  c.weights = Weights::kPackedBeside;
  for (const std::string& name : c.PackedOperands()) {
    packed.push_back(*PackWeights(*context, views(name)));
    views.AddPacked(name, packed.back().get());
  }
  for (const bool only : {false, true}) {
    GroupedMatMulArgs args = c.Bind(views);
    if (only) args.products[1].b = {};
    context->trace().Enable(true);
    const absl::Status status = GroupedMatMulInto(*context, args);
    ASSERT_TRUE(status.ok()) << status;
    const TraceRecord& record = context->trace().records().back();
    EXPECT_EQ(record.decision.device, only ? DeviceKind::kCpu : DeviceKind::kCuda);
    Outcome outcome;
    for (const Expectation& expectation : prepared->expectations) {
      EXPECT_EQ(Compare(expectation, views(expectation.operand), outcome), "");
    }
  }
}

}  // namespace
}  // namespace tandem::cases
