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
#include "dispatch/per_device.h"

namespace tandem {

class CostModel;
class CostCorrection;

// How devices are chosen (docs/scheduling.md).
enum class PolicyKind : uint8_t {
  kAuto,        // calibrated if this machine has been measured and has a GPU, else fixed
  kCpu,         // the CPU for everything
  kCuda,        // the GPU for everything it has a kernel for
  kFixed,       // the thresholds below
  kCalibrated,  // the least predicted time, moving the operands included
};
inline constexpr std::array<std::string_view, 5> kPolicyNames = {"auto", "cpu", "cuda", "fixed",
                                                                 "calibrated"};
inline std::string_view Name(PolicyKind kind) { return kPolicyNames[static_cast<size_t>(kind)]; }
// InvalidArgument lists the names.
absl::StatusOr<PolicyKind> ParsePolicyKind(std::string_view name);

// Settable here, by a JSON file {"policy": "fixed", "attention_min_kv_len": 128, ...} named by
// TANDEM_POLICY_FILE, and by TANDEM_POLICY=fixed, TANDEM_POLICY_ATTENTION_MIN_KV_LEN=128 etc. in
// the environment (which wins over the file).
struct Policy {
  PolicyKind kind = PolicyKind::kAuto;
  // fixed: thresholds from which the GPU is used when it is present.
  int64_t attention_min_kv_len = 64;  // attention: cache length >= this
  int64_t matmul_min_m = 2;           // matrix products, grouped or not: M >= this, and
  int64_t matmul_min_mkn = 1000;      //   M * K * N >= this
  int64_t mask_min_elements = 16385;  // mask: q_len * kv_len >= this (more than 16 384)
  // calibrated: a call leaves the device of its operands only for a predicted gain of more than
  // this part of its time there, percent.
  int64_t switch_margin_percent = 5;
  // calibrated: 1: predictions follow what calls take (dispatch/cost_correction.h); 0: they do not,
  // and decisions are the same from run to run.
  int64_t correct_online = 1;
  // calibrated: one call in this many may run on the device that is predicted to be slower, to see
  // whether it still is; 0: none. And only where it is predicted to take at most this percentage of
  // the best.
  int64_t explore_one_in = 0;
  int64_t explore_max_percent = 200;
};

struct PolicyField {
  std::string_view name;
  int64_t Policy::*value;
};
// Every number by name, for configuration and help texts.
inline constexpr std::array<PolicyField, 8> kPolicyFields = {
    {{"attention_min_kv_len", &Policy::attention_min_kv_len},
     {"matmul_min_m", &Policy::matmul_min_m},
     {"matmul_min_mkn", &Policy::matmul_min_mkn},
     {"mask_min_elements", &Policy::mask_min_elements},
     {"switch_margin_percent", &Policy::switch_margin_percent},
     {"correct_online", &Policy::correct_online},
     {"explore_one_in", &Policy::explore_one_in},
     {"explore_max_percent", &Policy::explore_max_percent}}};

// `base` with the fields of a JSON object replaced. InvalidArgument: not an object, unknown field,
// not an integer >= 0, not the name of a policy.
absl::StatusOr<Policy> PolicyFromJson(const std::string& json, const Policy& base = {});

// Bytes of operands that are in the memory of one device.
struct OperandBytes {
  int64_t read = 0;
  int64_t written = 0;
  // How many operands those are: each is a copy of its own.
  int32_t reads = 0;
  int32_t writes = 0;
};

// What a decision is made from.
struct OpFacts {
  OpKind op = OpKind::kAttention;
  // matmul; grouped: n of all products; attention: queries, query heads, head dimension
  int64_t m = 0, n = 0, k = 0;
  int64_t kv_heads = 0;  // attention
  int64_t kv_len = 0;    // attention
  int64_t elements = 0;  // of the output
  int64_t bytes = 0;     // read and written, each once
  double flops = 0.0;
  Device operands;              // where the operands live
  PerDevice<OperandBytes> at;   // all of them, by where each one is
  DType input = DType::kF32;    // matmul: of a; attention: of q; mask: of the mask
  DType weights = DType::kF32;  // matmul: of b; attention: of k
  bool packed = false;          // matmul: b is given packed
  bool movable = true;          // false: packed only, and packed weights cannot be copied
  // attention: batch-invariant, so that no class of calls that depends on the batch may choose the
  // kernel
  bool batch_invariant = false;
};

// Can the GPU be asked (dispatch/device_health.h)?
enum class GpuState : uint8_t {
  kReady,
  kBackOff,  // calls like this have failed there a moment ago
  kLost,     // present, but it refuses all work
};

struct DecisionInputs {
  OpFacts facts;
  bool cuda_present = false;
  GpuState cuda_state = GpuState::kReady;
  std::optional<DeviceKind> forced_device;
  // The caller has chosen the device already, by where it put the operands (PlacedCalls).
  bool placed = false;
  PerDevice<int64_t> free_bytes = {{INT64_MAX, INT64_MAX}};  // of memory
  // Until the device has done what is queued on it already, predicted.
  PerDevice<double> queued_seconds;
  // This call may be run on the slower device, to learn (Policy::explore_one_in).
  bool explore = false;
};

// What a call is predicted to take on one device.
struct Prediction {
  double call_seconds = -1.0;  // with its operands there; < 0: unknown
  double move_seconds = 0.0;   // copying them there, and the results back
  double wait_seconds = 0.0;   // until queued work is done
  float correction = 1.0f;     // that is in call_seconds and move_seconds already: what calls took
                               // lately over what was predicted
  int32_t slot = -1;           // of that correction

  bool known() const { return call_seconds >= 0.0; }
  double total() const { return call_seconds + move_seconds + wait_seconds; }
};

// The call on one device, copies of operands that are elsewhere included, waiting for others not.
// Unknown where nothing like it was measured, or what it reads cannot be moved there.
Prediction Predict(const OpFacts& facts, DeviceKind device, const CostModel& model,
                   const CostCorrection* correction);
// A call so predicted is finished and took this long: corrects what is predicted of its class.
void Learn(CostCorrection& correction, const Prediction& prediction, double seconds);

struct Decision {
  DeviceKind device = DeviceKind::kCpu;
  // Why, as a value: decisions are made per call and must not allocate. Explain() puts it into
  // words.
  enum class Rule : uint8_t {
    kForced,           // the user chose the device
    kPlaced,           // the caller did, for this and its neighbours together
    kOnlyCpu,          // no other device is present
    kPolicy,           // the policy is this device
    kAboveThreshold,   // the policy's threshold is reached: GPU
    kBelowThreshold,   // it is not: CPU
    kFollowsOperands,  // ops without a threshold run where their operands are; so do all whose
                       // operands are on the GPU: fetching them costs more than it can save
    kNoKernel,      // the policy's device has no kernel for these arguments: where the operands are
    kPredicted,     // least predicted time
    kWithinMargin,  // the other device is predicted to be faster, but not by the margin
    kNoMemory,      // the other device is predicted to be faster, but has no room for the operands
    kExplores,      // the other device is predicted to be faster; to see whether it is
    kGpuLost,       // the policy's device is the GPU, which is lost
    kGpuBackOff,    // the same, which is left alone for a while
    kGpuFailed,     // the GPU was tried and failed: CPU instead (dispatch/fallback.h)
  } rule = Rule::kOnlyCpu;
  // By the calibrated policy.
  PerDevice<Prediction> predicted = {};
};

// `model`: nullptr if the machine has not been measured; then the calibrated policy decides as the
// fixed one does, and so it does about calls that were not measured. `correction` may be nullptr.
Decision Choose(const DecisionInputs& inputs, const Policy& policy,
                const CostModel* model = nullptr, const CostCorrection* correction = nullptr);

// The reason in words: "cache length 32 < attention_min_kv_len 64".
std::string Explain(const Decision& decision, const DecisionInputs& inputs, const Policy& policy);
// "1.23 ms", "45.6 us", "789 ns"
std::string HumanSeconds(double seconds);

}  // namespace tandem
