// The scheduler: which device should run an op. A pure function of facts and a policy; it looks at
// nothing else, so every decision can be tested, explained and repeated without a GPU.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/op.h"

namespace tandem {

// The fixed policy: thresholds from which the GPU is used when it is present. Settable here, by a
// JSON file
// {"attention_min_kv_len": 128, ...} named by TANDEM_POLICY_FILE, and by
// TANDEM_POLICY_ATTENTION_MIN_KV_LEN etc. in the environment (which wins over the file).
struct Policy {
  int64_t attention_min_kv_len = 64;  // attention: cache length >= this
  int64_t matmul_min_m = 2;           // matrix products, grouped or not: M >= this, and
  int64_t matmul_min_mkn = 1000;      //   M * K * N >= this
  int64_t mask_min_elements = 16385;  // mask: q_len * kv_len >= this (more than 16 384)
};

struct PolicyField {
  std::string_view name;
  int64_t Policy::*value;
};
// Every field by name, for configuration and help texts.
inline constexpr std::array<PolicyField, 4> kPolicyFields = {
    {{"attention_min_kv_len", &Policy::attention_min_kv_len},
     {"matmul_min_m", &Policy::matmul_min_m},
     {"matmul_min_mkn", &Policy::matmul_min_mkn},
     {"mask_min_elements", &Policy::mask_min_elements}}};

// `base` with the fields of a JSON object replaced. InvalidArgument: not an object, unknown field,
// not an integer >= 0.
absl::StatusOr<Policy> PolicyFromJson(const std::string& json, const Policy& base = {});

// What a decision is made from.
struct OpFacts {
  OpKind op = OpKind::kAttention;
  int64_t m = 0, n = 0, k = 0;  // matmul; grouped: n of all products
  int64_t kv_len = 0;           // attention
  int64_t elements = 0;         // of the output
  int64_t bytes = 0;            // read and written, each once
  double flops = 0.0;
  Device operands;              // where the operands live
  DType input = DType::kF32;    // matmul: of a; attention: of q
  DType weights = DType::kF32;  // matmul: of b; attention: of k
  bool packed = false;          // matmul: b is given packed
  // attention: batch-invariant, so that no class of calls that depends on the batch may choose the
  // kernel
  bool batch_invariant = false;
};

struct DecisionInputs {
  OpFacts facts;
  bool cuda_present = false;
  std::optional<DeviceKind> forced_device;
  // The caller has chosen the device already, by where it put the operands (PlacedCalls).
  bool placed = false;
};

struct Decision {
  DeviceKind device = DeviceKind::kCpu;
  // Why, as a value: decisions are made per call and must not allocate. Explain() puts it into
  // words.
  enum class Rule : uint8_t {
    kForced,           // the user chose the device
    kPlaced,           // the caller did, for this and its neighbours together
    kOnlyCpu,          // no other device is present
    kAboveThreshold,   // the policy's threshold is reached: GPU
    kBelowThreshold,   // it is not: CPU
    kFollowsOperands,  // ops without a threshold run where their operands are; so do all whose
                       // operands are on the GPU: fetching them costs more than it can save
    kNoKernel  // the policy's device has no kernel for these arguments: where the operands are
  } rule = Rule::kOnlyCpu;
};

Decision Choose(const DecisionInputs& inputs, const Policy& policy);

// The reason in words: "cache length 32 < attention_min_kv_len 64".
std::string Explain(const Decision& decision, const DecisionInputs& inputs, const Policy& policy);

}  // namespace tandem
