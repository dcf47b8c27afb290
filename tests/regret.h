// How much longer than necessary calls take where a policy puts them, over a published grid of
// shapes: regret = seconds where it was put / seconds on the better device - 1. The better device
// is found by brute force: a simulated machine says what the call takes on both, moving its
// operands included.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dispatch/call_shape.h"
#include "dispatch/cost_model.h"
#include "dispatch/scheduler.h"
#include "tests/simulated_machine.h"

namespace tandem::simulated {

// Attention of decode and prefill, products by rows, matrix and type, masks; each with its operands
// in host memory and on the GPU. Sizes lie between those that calibration measures.
std::vector<CallShape> RegretGrid();

struct Regret {
  std::string policy;
  int64_t calls = 0;
  double mean = 0.0;
  double worst = 0.0;
  double seconds = 0.0;  // of all calls, over that of the best choices
  std::string worst_call;
};

struct NamedPolicy {
  std::string name;
  Policy policy;
};
// calibrated; the constants 32 / 64 / 64^3; R4.1's defaults; always the CPU; always the GPU.
std::vector<NamedPolicy> ComparedPolicies();

// Of one policy on one machine. `model`: what the machine's calibration gave.
Regret RegretOf(const NamedPolicy& policy, const Machine& machine, const CostModel& model,
                const std::vector<CallShape>& grid);

struct MachineRegret {
  std::string machine;
  std::vector<Regret> regrets;  // of each policy
};
// On every simulated machine, calibrated with noise from `seed`.
std::vector<MachineRegret> RegretOnMachines(uint32_t seed, double noise = 0.04);

// A table of docs/results/scheduler.md.
std::string ToMarkdown(const std::vector<MachineRegret>& machines);
std::string ToJson(const std::vector<MachineRegret>& machines);

}  // namespace tandem::simulated
