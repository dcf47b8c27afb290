// The fixed policy (thresholds, reasons, configuration) as a pure function: no device needed.
#include <gtest/gtest.h>

#include "dispatch/scheduler.h"

namespace tandem {
namespace {

DecisionInputs Inputs(OpKind op) {
  DecisionInputs inputs;
  inputs.facts.op = op;
  inputs.cuda_present = true;
  return inputs;
}

TEST(Scheduler, AttentionGoesToTheGpuFromCacheLength64) {
  DecisionInputs inputs = Inputs(OpKind::kAttention);
  inputs.facts.kv_len = 63;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
  inputs.facts.kv_len = 64;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCuda);
  EXPECT_EQ(Explain(Choose(inputs, {}), inputs, {}), "cache length 64 >= attention_min_kv_len 64");
}

TEST(Scheduler, MatMulNeedsMoreThanOneRowAndVolume) {
  DecisionInputs inputs = Inputs(OpKind::kMatMul);
  inputs.facts.m = 1;
  inputs.facts.k = 4096;
  inputs.facts.n = 4096;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
  EXPECT_EQ(Explain(Choose(inputs, {}), inputs, {}), "m = 1 < matmul_min_m 2");
  inputs.facts.m = 2;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCuda);
  inputs.facts.k = 9;
  inputs.facts.n = 55;  // 2 * 9 * 55 = 990
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
  EXPECT_EQ(Explain(Choose(inputs, {}), inputs, {}), "m*k*n = 990 < matmul_min_mkn 1000");
  inputs.facts.k = 10;
  inputs.facts.n = 50;  // exactly 1000
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCuda);
}

TEST(Scheduler, MatMulVolumeSaturatesInsteadOfOverflowing) {
  DecisionInputs inputs = Inputs(OpKind::kMatMul);
  inputs.facts.m = inputs.facts.k = inputs.facts.n = int64_t{1} << 40;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCuda);
}

TEST(Scheduler, MasksGoToTheGpuAbove16384Elements) {
  DecisionInputs inputs = Inputs(OpKind::kMask);
  inputs.facts.elements = 16384;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
  inputs.facts.elements = 16385;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCuda);
}

TEST(Scheduler, OtherOpsFollowTheirOperands) {
  DecisionInputs inputs = Inputs(OpKind::kRmsNorm);
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
  inputs.facts.operands = {DeviceKind::kCuda, 0};
  const Decision decision = Choose(inputs, {});
  EXPECT_EQ(decision.device, DeviceKind::kCuda);
  EXPECT_EQ(Explain(decision, inputs, {}), "runs where its operands live (cuda:0)");
}

TEST(Scheduler, WithoutGpuEverythingRunsOnTheCpu) {
  for (int op = 0; op < kNumOps; ++op) {
    DecisionInputs inputs = Inputs(static_cast<OpKind>(op));
    inputs.cuda_present = false;
    inputs.facts.kv_len = inputs.facts.elements = inputs.facts.m = 1 << 20;
    EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
    EXPECT_EQ(Choose(inputs, {}).rule, Decision::Rule::kOnlyCpu);
  }
}

TEST(Scheduler, AForcedDeviceWins) {
  DecisionInputs inputs = Inputs(OpKind::kAttention);
  inputs.facts.kv_len = 1 << 20;
  inputs.forced_device = DeviceKind::kCpu;
  EXPECT_EQ(Choose(inputs, {}).device, DeviceKind::kCpu);
  EXPECT_EQ(Explain(Choose(inputs, {}), inputs, {}), "device cpu is forced");
}

TEST(Scheduler, EveryFieldOfThePolicyMovesItsThreshold) {
  Policy policy;
  policy.attention_min_kv_len = 10;
  policy.matmul_min_m = 5;
  policy.matmul_min_mkn = 1;
  policy.mask_min_elements = 3;
  DecisionInputs inputs = Inputs(OpKind::kAttention);
  inputs.facts.kv_len = 10;
  EXPECT_EQ(Choose(inputs, policy).device, DeviceKind::kCuda);
  inputs = Inputs(OpKind::kMatMul);
  inputs.facts.m = 4;
  inputs.facts.n = inputs.facts.k = 100;
  EXPECT_EQ(Choose(inputs, policy).device, DeviceKind::kCpu);
  inputs.facts.m = 5;
  EXPECT_EQ(Choose(inputs, policy).device, DeviceKind::kCuda);
  inputs = Inputs(OpKind::kMask);
  inputs.facts.elements = 3;
  EXPECT_EQ(Choose(inputs, policy).device, DeviceKind::kCuda);
}

TEST(Scheduler, WhatWasPlacedRunsWhereItsOperandsAre) {
  for (const OpKind op : {OpKind::kAttention, OpKind::kMatMul, OpKind::kMask, OpKind::kRmsNorm}) {
    for (const DeviceKind at : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      DecisionInputs inputs = Inputs(op);
      inputs.facts.m = inputs.facts.n = inputs.facts.k = inputs.facts.kv_len = 1 << 20;
      inputs.facts.elements = int64_t{1} << 40;
      inputs.facts.operands = {at, 0};
      inputs.placed = true;
      const Decision decision = Choose(inputs, Policy());
      EXPECT_EQ(decision.device, at);
      EXPECT_EQ(decision.rule, Decision::Rule::kPlaced);
      EXPECT_EQ(Explain(decision, inputs, Policy()), at == DeviceKind::kCpu
                                                         ? "placed on cpu with its layer"
                                                         : "placed on cuda:0 with its layer");
      inputs.forced_device = DeviceKind::kCpu;
      EXPECT_EQ(Choose(inputs, Policy()).rule, Decision::Rule::kForced);
    }
  }
}

TEST(PolicyJson, ReplacesTheNamedFields) {
  const auto policy = PolicyFromJson(R"({"attention_min_kv_len": 128, "mask_min_elements": 0})");
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(policy->attention_min_kv_len, 128);
  EXPECT_EQ(policy->mask_min_elements, 0);
  EXPECT_EQ(policy->matmul_min_mkn, Policy{}.matmul_min_mkn);
}

TEST(PolicyJson, RejectsWhatItDoesNotKnow) {
  for (const char* bad : {"", "[]", "{\"attention\": 1}", "{\"matmul_min_m\": -1}",
                          "{\"matmul_min_m\": 1.5}", "{\"matmul_min_m\": \"2\"}", "{"}) {
    const auto policy = PolicyFromJson(bad);
    EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace tandem
