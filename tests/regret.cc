#include "tests/regret.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace tandem::simulated {
namespace {

CallShape Attention(int64_t q_heads, int64_t kv_heads, int64_t head_dim, int64_t q_len,
                    int64_t kv_len, int64_t batch = 1) {
  CallShape shape;
  shape.op = OpKind::kAttention;
  shape.weights = DType::kF16;
  shape.batch = batch;
  shape.q_heads = q_heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.q_len = q_len;
  shape.kv_len = kv_len;
  return shape;
}

}  // namespace

std::vector<CallShape> RegretGrid() {
  std::vector<CallShape> grid;
  struct Heads {
    int64_t q, kv, dim;
  };
  for (const Heads& heads : {Heads{32, 8, 128}, Heads{32, 32, 128}, Heads{14, 2, 64}}) {
    for (const int64_t kv_len : {20, 50, 100, 300, 700, 1500, 5000, 12000, 40000}) {
      grid.push_back(Attention(heads.q, heads.kv, heads.dim, 1, kv_len));
      if (kv_len <= 5000) grid.push_back(Attention(heads.q, heads.kv, heads.dim, 1, kv_len, 8));
    }
    for (const int64_t q_len : {5, 12, 40, 150, 500, 1200, 3000}) {
      grid.push_back(Attention(heads.q, heads.kv, heads.dim, q_len, q_len));
      grid.push_back(Attention(heads.q, heads.kv, heads.dim, q_len, q_len + 2500));
    }
  }
  for (const int64_t kv_len : {50, 300, 1500, 12000, 40000}) {
    for (const int64_t q_len : {1, 40}) {
      CallShape shape = Attention(32, 8, 128, q_len, kv_len);
      shape.weights = DType::kI8;
      grid.push_back(shape);
    }
  }
  struct Matrix {
    int64_t n, k;
  };
  for (const DType weights : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
    for (const Matrix& matrix :
         {Matrix{256, 256}, Matrix{896, 1024}, Matrix{2560, 2560}, Matrix{1024, 4096},
          Matrix{11008, 4096}, Matrix{4096, 14336}, Matrix{32000, 2048}}) {
      for (const int64_t m : {1, 2, 3, 5, 7, 12, 20, 33, 50, 90, 200, 500, 2000}) {
        grid.push_back({.weights = weights, .m = m, .n = matrix.n, .k = matrix.k});
      }
    }
  }
  for (const DType dtype : {DType::kF32, DType::kBool}) {
    for (const int64_t length : {30, 100, 129, 300, 700, 1500, 4000}) {
      CallShape shape;
      shape.op = OpKind::kMask;
      shape.input = dtype;
      shape.q_len = shape.kv_len = length;
      grid.push_back(shape);
    }
  }
  return grid;
}

std::vector<NamedPolicy> ComparedPolicies() {
  Policy calibrated, constants, defaults, cpu, cuda;
  calibrated.kind = PolicyKind::kCalibrated;
  constants.kind = defaults.kind = PolicyKind::kFixed;
  constants.matmul_min_m = 32;
  constants.attention_min_kv_len = 64;
  constants.matmul_min_mkn = 64 * 64 * 64;
  cpu.kind = PolicyKind::kCpu;
  cuda.kind = PolicyKind::kCuda;
  return {{"calibrated", calibrated},
          {"constants 32 / 64 / 64^3", constants},
          {"fixed, defaults", defaults},
          {"always the CPU", cpu},
          {"always the GPU", cuda}};
}

Regret RegretOf(const NamedPolicy& policy, const Machine& machine, const CostModel& model,
                const std::vector<CallShape>& grid) {
  Regret regret;
  regret.policy = policy.name;
  double best_sum = 0.0, sum = 0.0;
  for (const CallShape& shape : grid) {
    for (const DeviceKind home : kDeviceKinds) {
      DecisionInputs inputs;
      inputs.cuda_present = true;
      inputs.facts = FactsOf(shape, {home, 0}).value();
      const Decision decision = Choose(inputs, policy.policy, &model);
      const double taken = machine.TotalSeconds(inputs.facts, decision.device);
      const double best =
          std::min(taken, machine.TotalSeconds(inputs.facts, Other(decision.device)));
      const double lost = taken / best - 1.0;
      regret.mean += lost;
      best_sum += best;
      sum += taken;
      ++regret.calls;
      if (lost > regret.worst) {
        regret.worst = lost;
        regret.worst_call = absl::StrCat(Describe(shape), ", operands on ",
                                         Name(home) == "cpu" ? "the host" : "the GPU");
      }
    }
  }
  regret.mean /= static_cast<double>(regret.calls);
  regret.seconds = sum / best_sum;
  return regret;
}

std::vector<MachineRegret> RegretOnMachines(uint32_t seed, double noise) {
  const std::vector<CallShape> grid = RegretGrid();
  std::vector<MachineRegret> all;
  for (const MachineSpec& spec : Machines()) {
    Machine machine(spec, seed, noise);
    const CostModel model = machine.Calibrate();
    MachineRegret& one = all.emplace_back();
    one.machine = spec.name;
    for (const NamedPolicy& policy : ComparedPolicies()) {
      one.regrets.push_back(RegretOf(policy, machine, model, grid));
    }
  }
  return all;
}

std::string ToMarkdown(const std::vector<MachineRegret>& machines) {
  std::string text =
      "| simulated machine | policy | mean regret | worst | all calls, best = 1 | the worst call "
      "|\n"
      "|---|---|---:|---:|---:|---|\n";
  for (const MachineRegret& machine : machines) {
    for (const Regret& regret : machine.regrets) {
      absl::StrAppendFormat(&text, "| %s | %s | %.1f %% | %.0f %% | %.2f | %s |\n", machine.machine,
                            regret.policy, 100.0 * regret.mean, 100.0 * regret.worst,
                            regret.seconds, regret.worst_call);
    }
  }
  return text;
}

std::string ToJson(const std::vector<MachineRegret>& machines) {
  nlohmann::json json = nlohmann::json::array();
  for (const MachineRegret& machine : machines) {
    for (const Regret& regret : machine.regrets) {
      json.push_back({{"machine", machine.machine},
                      {"policy", regret.policy},
                      {"calls", regret.calls},
                      {"mean", regret.mean},
                      {"worst", regret.worst},
                      {"total", regret.seconds},
                      {"worst_call", regret.worst_call}});
    }
  }
  return json.dump(1) + "\n";
}

}  // namespace tandem::simulated
