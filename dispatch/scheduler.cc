#include "dispatch/scheduler.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/status.h"
#include "dispatch/cost_correction.h"
#include "dispatch/cost_model.h"

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

// By the thresholds.
Decision ChooseFixed(const DecisionInputs& inputs, const Policy& policy) {
  using Rule = Decision::Rule;
  const Threshold threshold = Compare(inputs.facts, policy);
  if (!threshold.exists) return {inputs.facts.operands.kind, Rule::kFollowsOperands};
  if (threshold.reached) return {DeviceKind::kCuda, Rule::kAboveThreshold};
  if (inputs.facts.operands.kind == DeviceKind::kCuda) {
    return {DeviceKind::kCuda, Rule::kFollowsOperands};
  }
  return {DeviceKind::kCpu, Rule::kBelowThreshold};
}

// By predicted time.
Decision ChooseCalibrated(const DecisionInputs& inputs, const Policy& policy,
                          const CostModel& model, const CostCorrection* correction) {
  using Rule = Decision::Rule;
  const DeviceKind home = inputs.facts.operands.kind, away = Other(home);
  Decision decision;
  for (const DeviceKind device : kDeviceKinds) {
    Prediction& p = decision.predicted[device] = Predict(inputs.facts, device, model, correction);
    if (!p.known()) continue;
    p.wait_seconds = inputs.queued_seconds[device];
    if (p.move_seconds > 0.0) {
      p.wait_seconds = std::max(p.wait_seconds, inputs.queued_seconds[Other(device)]);
    }
  }
  const Prediction& here = decision.predicted[home];
  const Prediction& there = decision.predicted[away];
  if (!here.known() || !there.known()) {
    const PerDevice<Prediction> predicted = decision.predicted;
    decision = ChooseFixed(inputs, policy);
    decision.predicted = predicted;
    return decision;
  }
  const OperandBytes& moved = inputs.facts.at[home];
  const bool room = moved.read + moved.written <= inputs.free_bytes[away];
  const double margin = static_cast<double>(policy.switch_margin_percent) / 100.0;
  if (there.total() >= here.total()) {
    decision.device = home;
    decision.rule = Rule::kPredicted;
  } else if (there.total() > here.total() * (1.0 - margin)) {
    decision.device = home;
    decision.rule = Rule::kWithinMargin;
  } else {
    decision.device = room ? away : home;
    decision.rule = room ? Rule::kPredicted : Rule::kNoMemory;
  }
  if (inputs.explore && (room || decision.device != home)) {
    const double limit = static_cast<double>(policy.explore_max_percent) / 100.0;
    const DeviceKind other = Other(decision.device);
    if (decision.predicted[other].total() <= limit * decision.predicted[decision.device].total()) {
      decision.device = other;
      decision.rule = Rule::kExplores;
    }
  }
  return decision;
}

// "12.3 us on cpu, 45.6 us on cuda (40.0 us of it to copy)"
std::string Predictions(const Decision& decision) {
  std::string text;
  for (const DeviceKind device : {decision.device, Other(decision.device)}) {
    const Prediction& p = decision.predicted[device];
    if (!p.known()) continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", HumanSeconds(p.total()), " on ",
                    std::string(Name(device)));
    std::vector<std::string> parts;
    if (p.move_seconds > 0.0) parts.push_back(HumanSeconds(p.move_seconds) + " of it to copy");
    if (p.wait_seconds > 0.0) parts.push_back(HumanSeconds(p.wait_seconds) + " to wait");
    if (!parts.empty()) absl::StrAppend(&text, " (", absl::StrJoin(parts, ", "), ")");
  }
  return text;
}

// What the policy says, were every device well.
Decision ByPolicy(const DecisionInputs& inputs, const Policy& policy, const CostModel* model,
                  const CostCorrection* correction) {
  switch (policy.kind) {
    case PolicyKind::kCpu:
      return {DeviceKind::kCpu, Decision::Rule::kPolicy};
    case PolicyKind::kCuda:
      return {DeviceKind::kCuda, Decision::Rule::kPolicy};
    case PolicyKind::kFixed:
      break;
    case PolicyKind::kAuto:
    case PolicyKind::kCalibrated:
      if (model != nullptr) return ChooseCalibrated(inputs, policy, *model, correction);
      break;
  }
  return ChooseFixed(inputs, policy);
}

}  // namespace

absl::StatusOr<PolicyKind> ParsePolicyKind(std::string_view name) {
  const auto found = std::find(kPolicyNames.begin(), kPolicyNames.end(), name);
  if (found == kPolicyNames.end()) {
    return InvalidArgument(
        "policy: expected one of ",
        absl::StrJoin(kPolicyNames, ", ", [](std::string* out, auto n) { out->append(n); }),
        "; got '", std::string(name), "'");
  }
  return static_cast<PolicyKind>(found - kPolicyNames.begin());
}

absl::StatusOr<Policy> PolicyFromJson(const std::string& json, const Policy& base) {
  const auto parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument("policy: expected a JSON object");
  Policy policy = base;
  for (const auto& [key, value] : parsed.items()) {
    if (key == "policy") {
      if (!value.is_string()) return InvalidArgument("policy field policy: expected a name");
      TANDEM_ASSIGN_OR_RETURN(policy.kind, ParsePolicyKind(value.get<std::string>()));
      continue;
    }
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

Prediction Predict(const OpFacts& facts, DeviceKind device, const CostModel& model,
                   const CostCorrection* correction) {
  Prediction prediction;
  if (!facts.movable && device != facts.operands.kind) return prediction;
  const int table = model.TableOf(facts, device);
  if (table < 0) return prediction;
  prediction.call_seconds = model.SecondsFrom(table, CostPointOf(facts));
  prediction.move_seconds = model.MoveSeconds(facts, device);
  prediction.slot = CostCorrection::SlotOf(table, prediction.move_seconds > 0.0);
  if (correction != nullptr) {
    const double factor = correction->Factor(prediction.slot);
    prediction.correction = static_cast<float>(factor);
    prediction.call_seconds *= factor;
    prediction.move_seconds *= factor;
  }
  return prediction;
}

void Learn(CostCorrection& correction, const Prediction& p, double seconds) {
  correction.Observe(p.slot, (p.call_seconds + p.move_seconds) / p.correction, seconds);
}

Decision Choose(const DecisionInputs& inputs, const Policy& policy, const CostModel* model,
                const CostCorrection* correction) {
  using Rule = Decision::Rule;
  if (inputs.forced_device) return {*inputs.forced_device, Rule::kForced};
  if (inputs.placed) return {inputs.facts.operands.kind, Rule::kPlaced};
  if (!inputs.cuda_present) return {DeviceKind::kCpu, Rule::kOnlyCpu};
  const Decision decision = ByPolicy(inputs, policy, model, correction);
  if (inputs.cuda_state == GpuState::kReady || decision.device == DeviceKind::kCpu) return decision;
  if (inputs.cuda_state == GpuState::kLost) return {DeviceKind::kCpu, Rule::kGpuLost};
  // What is there already is cheaper tried there than fetched.
  if (inputs.facts.operands.kind == DeviceKind::kCuda) return decision;
  return {DeviceKind::kCpu, Rule::kGpuBackOff};
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
    case Rule::kPolicy:
      return absl::StrCat("policy ", std::string(Name(decision.device)));
    case Rule::kFollowsOperands:
      return absl::StrCat("runs where its operands live (", Name(inputs.facts.operands), ")");
    case Rule::kNoKernel:
      return absl::StrCat("runs where its operands live (", Name(inputs.facts.operands),
                          "), for the other device has no kernel for it");
    case Rule::kGpuLost:
      return "the GPU is lost";
    case Rule::kGpuBackOff:
      return "calls like this failed on the GPU a moment ago: it is left alone for a while";
    case Rule::kGpuFailed:
      return "the GPU failed at this call: it ran on the CPU instead";
    case Rule::kAboveThreshold:
      return Comparison(inputs.facts, policy, true);
    case Rule::kBelowThreshold:
      return Comparison(inputs.facts, policy, false);
    case Rule::kPredicted:
      return "predicted: " + Predictions(decision);
    case Rule::kWithinMargin:
      return absl::StrCat("predicted: ", Predictions(decision), "; a gain of at most ",
                          policy.switch_margin_percent, " % is not worth moving");
    case Rule::kNoMemory:
      return absl::StrCat("predicted: ", Predictions(decision), "; but there is no room for ",
                          "the operands there");
    case Rule::kExplores:
      return absl::StrCat("tries the slower device: predicted ", Predictions(decision));
  }
  return "";
}

std::string HumanSeconds(double seconds) {
  if (seconds < 1e-6) return absl::StrFormat("%.3g ns", seconds * 1e9);
  if (seconds < 1e-3) return absl::StrFormat("%.3g us", seconds * 1e6);
  if (seconds < 1.0) return absl::StrFormat("%.3g ms", seconds * 1e3);
  return absl::StrFormat("%.3g s", seconds);
}

}  // namespace tandem
