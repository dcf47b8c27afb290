// tandem schedule-regret: how far each policy's decisions are from the best ones, on the simulated
// machines of tests/simulated_machine.h.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "tests/regret.h"
#include "tools/command.h"

namespace tandem::tools {
namespace {

struct Options {
  uint32_t seed = 1;
  double noise = 0.04;
  bool json = false;
};

}  // namespace

void AddScheduleRegret(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "schedule-regret",
      "Compare the policies with the best choice for every call, on simulated machines");
  command->add_option("--seed", o->seed, "of the noise of calibration")->capture_default_str();
  command
      ->add_option("--noise", o->noise, "standard deviation of measured times, as a part of them")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  command->add_flag("--json", o->json, "machine-readable output");
  command->callback([o, &action] {
    action = [o] {
      const auto machines = simulated::RegretOnMachines(o->seed, o->noise);
      std::cout << (o->json ? simulated::ToJson(machines) : simulated::ToMarkdown(machines));
      return kExitOk;
    };
  });
}

}  // namespace tandem::tools
