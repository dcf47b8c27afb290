#include "dispatch/scheduler.h"

#include <nlohmann/json.hpp>

#include "core/status.h"

namespace tandem {
namespace {

// The quantity that a threshold of the policy is compared with, for the ops that have one.
struct Threshold {
  bool exists = false;
  bool reached = false;
};

// m * k * n, saturating: only its comparison with a threshold matters.
int64_t Volume(const OpFacts& facts) {
  int64_t mk, mkn;
  if (__builtin_mul_overflow(facts.m, facts.k, &mk) || __builtin_mul_overflow(mk, facts.n, &mkn)) {
    return INT64_MAX;
  }
  return mkn;
}

Threshold Compare(const OpFacts& facts, const Policy& policy) {
  switch (facts.op) {
    case OpKind::kAttention:
      return {true, facts.kv_len >= policy.attention_min_kv_len};
    case OpKind::kMatMul:
    case OpKind::kGroupedMatMul:
      return {true, facts.m >= policy.matmul_min_m && Volume(facts) >= policy.matmul_min_mkn};
    case OpKind::kMask:
      return {true, facts.elements >= policy.mask_min_elements};
    default:
      return {};
  }
}

std::string Comparison(const OpFacts& facts, const Policy& policy, bool reached) {
  const char* sign = reached ? " >= " : " < ";
  switch (facts.op) {
    case OpKind::kAttention:
      return absl::StrCat("cache length ", facts.kv_len, sign, "attention_min_kv_len ",
                          policy.attention_min_kv_len);
    case OpKind::kMatMul:
    case OpKind::kGroupedMatMul:
      if (facts.m < policy.matmul_min_m) {
        return absl::StrCat("m = ", facts.m, " < matmul_min_m ", policy.matmul_min_m);
      }
      return absl::StrCat("m*k*n = ", Volume(facts), sign, "matmul_min_mkn ",
                          policy.matmul_min_mkn);
    case OpKind::kMask:
      return absl::StrCat(facts.elements, " elements", sign, "mask_min_elements ",
                          policy.mask_min_elements);
    default:
      return "";
  }
}

}  // namespace

absl::StatusOr<Policy> PolicyFromJson(const std::string& json, const Policy& base) {
  const auto parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument("policy: expected a JSON object");
  Policy policy = base;
  for (const auto& [key, value] : parsed.items()) {
    bool known = false;
    for (const PolicyField& field : kPolicyFields) {
      if (field.name != key) continue;
      known = true;
      if (!value.is_number_integer() || value.get<int64_t>() < 0) {
        return InvalidArgument("policy field ", key, ": expected an integer >= 0");
      }
      policy.*field.value = value.get<int64_t>();
    }
    if (!known) return InvalidArgument("policy: unknown field '", key, "'");
  }
  return policy;
}

Decision Choose(const DecisionInputs& inputs, const Policy& policy) {
  using Rule = Decision::Rule;
  if (inputs.forced_device) return {*inputs.forced_device, Rule::kForced};
  if (inputs.placed) return {inputs.facts.operands.kind, Rule::kPlaced};
  if (!inputs.cuda_present) return {DeviceKind::kCpu, Rule::kOnlyCpu};
  const Threshold threshold = Compare(inputs.facts, policy);
  if (!threshold.exists) return {inputs.facts.operands.kind, Rule::kFollowsOperands};
  if (threshold.reached) return {DeviceKind::kCuda, Rule::kAboveThreshold};
  if (inputs.facts.operands.kind == DeviceKind::kCuda) {
    return {DeviceKind::kCuda, Rule::kFollowsOperands};
  }
  return {DeviceKind::kCpu, Rule::kBelowThreshold};
}

std::string Explain(const Decision& decision, const DecisionInputs& inputs, const Policy& policy) {
  using Rule = Decision::Rule;
  switch (decision.rule) {
    case Rule::kForced:
      return absl::StrCat("device ", std::string(Name(decision.device)), " is forced");
    case Rule::kPlaced:
      return absl::StrCat("placed on ", Name(inputs.facts.operands), " with its layer");
    case Rule::kOnlyCpu:
      return "the CPU is the only device present";
    case Rule::kFollowsOperands:
      return absl::StrCat("runs where its operands live (", Name(inputs.facts.operands), ")");
    case Rule::kNoKernel:
      return absl::StrCat("runs where its operands live (", Name(inputs.facts.operands),
                          "), for the other device has no kernel for it");
    case Rule::kAboveThreshold:
      return Comparison(inputs.facts, policy, true);
    case Rule::kBelowThreshold:
      return Comparison(inputs.facts, policy, false);
  }
  return "";
}

}  // namespace tandem
