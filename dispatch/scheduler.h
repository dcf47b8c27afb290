// The scheduler: which device should run an op. A pure function of facts and a policy; it looks at
// nothing else, so every decision can be tested, explained and repeated without a GPU.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/op.h"

namespace tandem {

// The fixed policy: thresholds from which the GPU is used when it is present. Settable here, by
// TANDEM_POLICY_<FIELD> in the environment, and by a JSON object {"<field>": value} in a
// configuration file.
struct Policy {
  int64_t attention_min_kv_len = 64;      // attention: cache length >= this
  int64_t matmul_min_m = 2;               // matrix product: M >= this, and
  int64_t matmul_min_mkn = 1000;          //   M * K * N >= this
  int64_t mask_min_elements = 16384 + 1;  // mask: more than 16 384 elements
};

// What a decision is made from.
struct OpFacts {
  OpKind op = OpKind::kAttention;
  int64_t m = 0, n = 0, k = 0;  // matmul
  int64_t kv_len = 0;           // attention
  int64_t elements = 0;         // of the output
  int64_t bytes = 0;            // read and written, each once
  double flops = 0.0;
  Device operands;  // where the operands live
};

struct DecisionInputs {
  OpFacts facts;
  bool cuda_present = false;
  std::optional<DeviceKind> forced_device;
};

struct Decision {
  DeviceKind device = DeviceKind::kCpu;
  // A short phrase, static or assembled on demand: see Explain. Decisions are made per call, so
  // none allocates.
  enum class Rule : uint8_t {
    kForced,          // the user chose the device
    kOnlyCpu,         // no other device is present
    kAboveThreshold,  // the policy's threshold is reached: GPU
    kBelowThreshold,  // it is not: CPU
    kFollowsOperands  // ops without a threshold run where their operands are
  } rule = Rule::kOnlyCpu;
};

Decision Choose(const DecisionInputs& inputs, const Policy& policy);

// The reason in words: "cache length 32 < attention_min_kv_len 64".
std::string Explain(const Decision& decision, const DecisionInputs& inputs, const Policy& policy);

}  // namespace tandem
