// Plans of decoders for both devices: what fits, what does not and why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/decoder_plan.h"
#include "tests/model_shapes.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
constexpr DeviceKind kGpu = DeviceKind::kCuda;

TEST(HybridPlan, WithoutMeasuredTimesTheLastLayersThatFitGoToTheGpu) {
  const ShapedModel decoder(ModelShapes()[3], DType::kQ8_0);
  DecoderPlanInputs inputs = {.config = decoder.config, .weights = decoder.weights};
  inputs.session.capacity = 1024;
  DecoderMemory memory;
  int64_t before = -1;
  for (const int64_t mebibytes : {0, 50, 200, 500, 1000, 1200, 4000}) {
    memory.gpu_bytes = mebibytes << 20;
    const auto plan = PlanDecoder(inputs, nullptr, memory);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->gpu_bytes, memory.gpu_bytes);
    const int64_t count = HalvesOnGpu(plan->placement);
    EXPECT_GE(count, before);
    before = count;
    // One layer more would not have fitted.
    if (plan->placement.output == kGpu && !plan->placement.on_one_device()) {
      inputs.gpu_layers = count / 2 + 1;
      EXPECT_EQ(PlanDecoder(inputs, nullptr, memory).status().code(),
                absl::StatusCode::kResourceExhausted);
      inputs.gpu_layers.reset();
      EXPECT_EQ(plan->placement.layers.back(), (LayerDevices{kGpu, kGpu}));
    }
  }
  EXPECT_EQ(before, 2 * decoder.config.layers);
}

TEST(HybridPlan, RefusalsSayWhatWouldFit) {
  const ShapedModel decoder(ModelShapes()[3], DType::kQ8_0);
  DecoderPlanInputs inputs = {.config = decoder.config, .weights = decoder.weights};
  DecoderMemory memory;
  memory.gpu_bytes = int64_t{700} << 20;
  inputs.gpu_layers = 22;
  const auto refused = PlanDecoder(inputs, nullptr, memory);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(refused.status().message()),
      testing::AllOf(HasSubstr("22 layers take"), HasSubstr("700.0 MiB"), HasSubstr(" fit")));
  inputs.gpu_layers = 23;
  EXPECT_EQ(PlanDecoder(inputs, nullptr, memory).status().code(),
            absl::StatusCode::kInvalidArgument);
  inputs.gpu_layers = 0;
  const auto nothing = PlanDecoder(inputs, nullptr, memory);
  ASSERT_TRUE(nothing.ok());
  EXPECT_EQ(nothing->gpu_bytes, 0);
  inputs.job = {0, 0};
  EXPECT_EQ(PlanDecoder(inputs, nullptr, memory).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// A made-up machine: bandwidths alone. The GPU reads ten times as fast as the CPU.
DecoderMachine Bandwidths() {
  DecoderMachine machine;
  machine.call_seconds = [](const OpFacts& facts, DeviceKind device) {
    return std::optional(static_cast<double>(facts.bytes) / (device == kGpu ? 1e12 : 1e11));
  };
  machine.copy_seconds = [](DeviceKind, DeviceKind, int64_t bytes) {
    return 1e-5 + static_cast<double>(bytes) / 2e10;
  };
  return machine;
}

// Short caches stay whole, long ones are cut, the more the less memory there is, and what is chosen
// takes no longer than whole caches by the same times.
TEST(HybridPlan, CachesAreCutWhereThatIsPredictedToPay) {
  const ShapedModel decoder(ModelShapes()[4], DType::kQ4_K);
  const DecoderMachine machine = Bandwidths();
  DecoderMemory memory;
  memory.gpu_bytes = int64_t{8} << 30;
  DecoderPlanInputs inputs = {.config = decoder.config, .weights = decoder.weights};
  inputs.session.capacity = 4096;
  EXPECT_EQ(PlanDecoder(inputs, &machine, memory)->placement.gpu_cache_rows, std::nullopt);
  inputs.session.capacity = 131072;
  int64_t before = INT64_MAX;
  for (const int64_t gibibytes : {14, 10, 8, 6}) {
    SCOPED_TRACE(gibibytes);
    memory.gpu_bytes = gibibytes << 30;
    inputs.split_caches = false;
    const auto whole = PlanDecoder(inputs, &machine, memory);
    ASSERT_TRUE(whole.ok()) << whole.status();
    EXPECT_EQ(whole->placement.gpu_cache_rows, std::nullopt);
    inputs.split_caches = true;
    const auto plan = PlanDecoder(inputs, &machine, memory);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->gpu_bytes, memory.gpu_bytes);
    ASSERT_TRUE(plan->placement.gpu_cache_rows.has_value()) << plan->placement.reason;
    EXPECT_GT(*plan->placement.gpu_cache_rows, 0);
    EXPECT_LT(*plan->placement.gpu_cache_rows, 131072);
    EXPECT_LT(*plan->placement.gpu_cache_rows, before);
    before = *plan->placement.gpu_cache_rows;
    EXPECT_GT(HalvesOnGpu(plan->placement), HalvesOnGpu(whole->placement));
    EXPECT_LT(plan->seconds * 1.1, whole->seconds);
    EXPECT_EQ(EvaluateDecoder(inputs, &machine, memory, plan->placement).seconds, plan->seconds);
    EXPECT_THAT(plan->placement.reason, HasSubstr("with whole caches "));
    EXPECT_THAT(Describe(plan->placement), HasSubstr("of caches on cuda the first "));
  }
  // A context of which a short prompt and a short answer use little: what they use fits anyway.
  inputs.job = {512, 256};
  EXPECT_GE(*PlanDecoder(inputs, &machine, memory)->placement.gpu_cache_rows, 768);
}

TEST(HybridPlan, CallsThatWereNotMeasuredFallBackToWhatFits) {
  const ShapedModel decoder(ModelShapes()[3], DType::kQ8_0);
  DecoderPlanInputs inputs = {.config = decoder.config, .weights = decoder.weights};
  DecoderMemory memory;
  memory.gpu_bytes = int64_t{8} << 30;
  DecoderMachine machine;
  machine.call_seconds = [](const OpFacts& facts, DeviceKind) {
    return facts.op == OpKind::kAttention ? std::nullopt : std::optional(1e-3);
  };
  machine.copy_seconds = [](DeviceKind, DeviceKind, int64_t) { return 1e-5; };
  const auto plan = PlanDecoder(inputs, &machine, memory);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Describe(plan->placement), "everything on cuda");
  EXPECT_THAT(plan->placement.reason, HasSubstr("ops[1]"));
}

}  // namespace
}  // namespace tandem
