// The walk of a public op: validation, environment and forced choices, workspace, trace, value
// forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/status.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "tests/scoped_env.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Context> MakeContext(ContextOptions options = {}) {
  options.threads = options.threads ? options.threads : 2;
  auto context = Context::Create(options);
  EXPECT_TRUE(context.ok()) << context.status();
  return std::move(context).value();
}

struct AttentionData {
  std::vector<float> q, k, v, out;
  AttentionArgs args;
  explicit AttentionData(int64_t kv_len = 8)
      : q(2 * 2 * 4, 0.5f), k(2 * kv_len * 4, 0.25f), v(2 * kv_len * 4, 2.0f), out(16, -1.0f) {
    args.q = MakeView(q.data(), DType::kF32, {1, 2, 2, 4});
    args.k = MakeView(k.data(), DType::kF32, {1, 2, kv_len, 4});
    args.v = MakeView(v.data(), DType::kF32, {1, 2, kv_len, 4});
    args.out = MakeView(out.data(), DType::kF32, {1, 2, 2, 4});
  }
};

TEST(Ops, AttentionOfEqualValuesIsThatValue) {
  auto context = MakeContext();
  AttentionData data;
  ASSERT_TRUE(AttentionInto(*context, data.args).ok());
  for (float x : data.out) EXPECT_FLOAT_EQ(x, 2.0f);
}

TEST(Ops, ValueFormsAllocateTheRightShape) {
  auto context = MakeContext();
  AttentionData data;
  const auto out = Attention(*context, data.args);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->shape(), (Shape{1, 2, 2, 4}));
  const auto mask = Mask(*context, {3, 40, Causal::kBottomRight, -1, -1}, DType::kU32);
  ASSERT_TRUE(mask.ok()) << mask.status();
  EXPECT_EQ(mask->shape(), (Shape{3, 2}));
  std::vector<float> a(6, 1.0f), b(12, 2.0f);
  MatMulArgs matmul;
  matmul.a = MakeView(a.data(), DType::kF32, {2, 3});
  matmul.b = MakeView(b.data(), DType::kF32, {4, 3});
  const auto product = MatMul(*context, matmul);
  ASSERT_TRUE(product.ok()) << product.status();
  EXPECT_EQ(product->shape(), (Shape{2, 4}));
  for (int i = 0; i < 8; ++i) EXPECT_FLOAT_EQ(product->As<float>()[i], 6.0f);
}

TEST(Ops, BadInputNamesTheArgumentAndWritesNothing) {
  auto context = MakeContext();
  AttentionData data;
  data.args.k.shape.dims[3] = 5;
  const absl::Status status = AttentionInto(*context, data.args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("k dimension 3 (head_dim): expected 4, got 5"));
  for (float x : data.out) EXPECT_EQ(x, -1.0f);
}

TEST(Ops, OperandsOnAnAbsentDeviceAreAnError) {
  auto context = MakeContext();
  AttentionData data;
  for (TensorView* view : {&data.args.q, &data.args.k, &data.args.v, &data.args.out}) {
    view->device = {DeviceKind::kCuda, 0};
  }
  const absl::Status status = AttentionInto(*context, data.args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("cuda:0"));
}

TEST(Ops, AForcedKernelRunsAndIsTraced) {
  const WithoutGpu alone;
  ContextOptions options;
  options.trace = true;
  options.force_kernel["attention"] = "reference";
  auto context = MakeContext(options);
  AttentionData data;
  ASSERT_TRUE(AttentionInto(*context, data.args).ok());
  ASSERT_EQ(context->trace().records().size(), 1u);
  const TraceRecord& record = context->trace().records()[0];
  EXPECT_EQ(record.kernel, "reference");
  EXPECT_EQ(record.facts.kv_len, 8);
  EXPECT_GT(record.facts.bytes, 0);
  EXPECT_EQ(record.decision.rule, Decision::Rule::kOnlyCpu);
}

TEST(Ops, AForcedKernelThatCannotIsAnErrorNotAFallback) {
  ContextOptions options;
  options.isa = "scalar";
  options.force_kernel["matmul"] = "gemv_avx512";
  auto context = MakeContext(options);
  std::vector<float> a(8, 1.0f), b(32, 1.0f), out(4, -1.0f);
  MatMulArgs args;
  args.a = MakeView(a.data(), DType::kF32, {1, 8});
  args.b = MakeView(b.data(), DType::kF32, {4, 8});
  args.out = MakeView(out.data(), DType::kF32, {1, 4});
  const absl::Status status = MatMulInto(*context, args);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(status), HasSubstr("gemv_avx512: needs avx512"));
  for (float x : out) EXPECT_EQ(x, -1.0f);
}

TEST(Ops, EveryOpHasAReferenceKernelLast) {
  for (int op = 0; op < kNumOps; ++op) {
    const auto names = KernelNames(static_cast<OpKind>(op), DeviceKind::kCpu);
    ASSERT_FALSE(names.empty()) << Name(static_cast<OpKind>(op));
    EXPECT_EQ(names.back(), "reference") << Name(static_cast<OpKind>(op));
  }
}

TEST(Context, UnknownNamesAreRefusedWithTheKnownOnes) {
  ContextOptions options;
  options.force_kernel["attention"] = "magic";
  absl::Status status = Context::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("reference"));
  options.force_kernel = {{"attentoin", "reference"}};
  status = Context::Create(options).status();
  EXPECT_THAT(Message(status), HasSubstr("unknown op 'attentoin'; known: attention"));
  options.force_kernel.clear();
  options.isa = "avx9";
  EXPECT_THAT(Message(Context::Create(options).status()), HasSubstr("isa: expected"));
  options.isa.clear();
  options.threads = -1;
  EXPECT_THAT(Message(Context::Create(options).status()), HasSubstr("threads: expected"));
}

TEST(Context, AForcedDeviceThatIsNotThereIsAnError) {
  const WithoutGpu alone;
  ContextOptions options;
  options.device = DeviceKind::kCuda;
  const absl::Status status = Context::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("cuda was asked for"));
}

TEST(Context, EnvironmentOverridesOptions) {
  ScopedEnv threads("TANDEM_THREADS", "1");
  ScopedEnv isa("TANDEM_ISA", "scalar");
  ScopedEnv kernel("TANDEM_KERNEL", "attention=reference,matmul=reference");
  ScopedEnv policy("TANDEM_POLICY_ATTENTION_MIN_KV_LEN", "7");
  ScopedEnv trace("TANDEM_TRACE", "1");
  ScopedEnv quantize("TANDEM_QUANTIZE_ACTIVATIONS", "0");
  auto context = MakeContext();
  EXPECT_EQ(context->options().threads, 1);
  EXPECT_EQ(context->options().isa, "scalar");
  EXPECT_EQ(context->forced_kernel(OpKind::kMatMul), "reference");
  EXPECT_EQ(context->options().policy.attention_min_kv_len, 7);
  EXPECT_TRUE(context->trace().enabled());
  EXPECT_FALSE(context->options().quantize_activations);
}

TEST(Context, TheEmulatedDeviceIsThereOnlyWhenAskedFor) {
  const WithoutGpu alone;
  const Device emulated = {DeviceKind::kCuda, kEmulatedDevice};
  EXPECT_FALSE(MakeContext()->has(emulated));
  {
    ScopedEnv env("TANDEM_CUDA_EMULATED", "1");
    const auto context = MakeContext();
    EXPECT_TRUE(context->has(emulated));
    EXPECT_EQ(Name(context->device(DeviceKind::kCuda)->backend->device()), "cuda:emulated");
  }
  ContextOptions options;
  ASSERT_TRUE(options.SetDevice("cuda:emulated").ok());
  EXPECT_TRUE(MakeContext(options)->has(emulated));
  EXPECT_FALSE(MakeContext()->has(emulated));
}

TEST(Context, BadEnvironmentNamesTheVariable) {
  for (const auto& [name, value] : std::vector<std::pair<std::string, std::string>>{
           {"TANDEM_THREADS", "many"},
           {"TANDEM_DEVICE", "tpu"},
           {"TANDEM_CUDA_EMULATED", "perhaps"},
           {"TANDEM_KERNEL", "attention"},
           {"TANDEM_TRACE", "yes"},
           {"TANDEM_QUANTIZE_ACTIVATIONS", "never"},
           {"TANDEM_POLICY_MATMUL_MIN_M", "-3"},
           {"TANDEM_POLICY_FILE", "/nonexistent/policy.json"}}) {
    ScopedEnv env(name, value);
    const absl::Status status = Context::Create().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(Message(status), HasSubstr(name));
  }
}

TEST(Context, PolicyFileIsReadAndTheEnvironmentWins) {
  const std::string path = ::testing::TempDir() + "/tandem_policy.json";
  std::ofstream(path) << R"({"attention_min_kv_len": 100, "matmul_min_m": 9})";
  ScopedEnv file("TANDEM_POLICY_FILE", path);
  ScopedEnv field("TANDEM_POLICY_MATMUL_MIN_M", "3");
  auto context = MakeContext();
  EXPECT_EQ(context->options().policy.attention_min_kv_len, 100);
  EXPECT_EQ(context->options().policy.matmul_min_m, 3);
}

TEST(Trace, ChromeTraceIsValidJsonWithOneEventPerCall) {
  const WithoutGpu alone;
  ContextOptions options;
  options.trace = true;
  auto context = MakeContext(options);
  AttentionData data;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(AttentionInto(*context, data.args).ok());
  std::ostringstream text;
  context->trace().WriteChromeTrace(text, context->options().policy);
  const auto json = nlohmann::json::parse(text.str(), nullptr, false);
  ASSERT_TRUE(json.is_object());
  int events = 0;
  for (const auto& event : json["traceEvents"]) {
    if (event["ph"] != "X") continue;
    ++events;
    EXPECT_EQ(event["name"], "attention");
    EXPECT_EQ(event["args"]["kv_len"], 8);
    EXPECT_EQ(event["args"]["reason"], "the CPU is the only device present");
  }
  EXPECT_EQ(events, 3);
  const auto summary = context->trace().Summarize(context->options().policy);
  ASSERT_EQ(summary.size(), 1u);
  EXPECT_EQ(summary[0].calls, 3);
}

}  // namespace
}  // namespace tandem
