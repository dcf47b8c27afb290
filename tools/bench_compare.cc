// tandem bench --compare cpu,cuda: the same calls on every device, over the lengths that matter,
// beside the machine's limits; and which device the scheduler would have chosen. --from shows a
// report again, --simulate one of a machine that does not exist.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/status.h"
#include "tools/command.h"
#include "tools/comparison.h"
#include "tools/comparison_measure.h"
#include "tools/comparison_plot.h"
#include "tools/comparison_simulated.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  ComputeOptions compute;
  std::vector<std::string> devices;
  std::string from, simulate, json, html, only;
  bool quick = false;
  int64_t longest = 0;
};

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return absl::NotFoundError("--from: cannot read " + path);
  return text.str();
}

absl::Status WriteText(const std::string& option, const std::string& path,
                       const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::NotFoundError(option + ": cannot write " + path);
  return absl::OkStatus();
}

void Print(const Comparison& c) {
  const bool color = UseColor(1);
  if (c.kind == ComparisonKind::kSimulated) {
    std::cout << Styled("Simulated: no hardware was measured.", Style::kYellow, color) << "\n";
  }
  for (const ComparedDevice& device : c.devices) {
    std::cout << Styled(device.id, Style::kBold, color) << ": " << device.name << "\n";
    if (device.emulated) {
      std::cout << Styled("  an emulator that runs on the CPU: no times of a GPU", Style::kYellow,
                          color)
                << "\n";
    }
    for (const MachineLimit& limit : device.limits) {
      std::cout << "  " << limit.what << " "
                << FormatRate(limit.value, limit.kind == MachineLimit::Kind::kCompute) << "\n";
    }
  }
  for (const auto& [device, why] : c.absent)
    std::cout << "without " << device << ": " << why << "\n";
  const bool several = c.devices.size() > 1;
  for (const ComparedSeries& series : c.series) {
    std::vector<std::string> head = {series.x_name};
    for (const ComparedDevice& device : c.devices) {
      for (const char* column : {" us", " GB/s", " GFLOP/s"}) head.push_back(device.id + column);
    }
    if (several) head.insert(head.end(), {"choice", "regret %"});
    Table table(head);
    for (const ComparedPoint& point : series.points) {
      std::vector<std::string> row = {absl::StrCat(point.x)};
      for (const ComparedDevice& device : c.devices) {
        const ComparedTime* time = TimeOf(point, device.id);
        if (time == nullptr) {
          row.insert(row.end(), {"-", "-", "-"});
          continue;
        }
        row.push_back(absl::StrFormat("%.2f", time->median * 1e6));
        row.push_back(FormatNumber(point.bytes / time->median * 1e-9));
        row.push_back(point.flops > 0 ? FormatNumber(point.flops / time->median * 1e-9) : "-");
      }
      if (several) {
        const std::optional<double> regret = Regret(point, point.choice);
        row.push_back(point.choice);
        row.push_back(regret ? absl::StrFormat("%.1f", *regret * 100) : "-");
      }
      table.Row(row);
    }
    std::cout << "\n"
              << Styled(
                     absl::StrCat(series.op, ", ", series.title, ", operands: ", series.operands),
                     Style::kBold, color)
              << "\n";
    table.Print(std::cout, color);
  }
  const std::vector<RegretSummary> regrets = Regrets(c);
  if (regrets.empty()) return;
  Table table({"strategy", "calls", "mean regret %", "worst %", "where"});
  for (const RegretSummary& regret : regrets) {
    table.Row({regret.strategy, absl::StrCat(regret.points),
               absl::StrFormat("%.1f", regret.mean * 100),
               absl::StrFormat("%.1f", regret.worst * 100),
               regret.worst > 0 ? absl::StrCat(regret.worst_series, " at ", regret.worst_x) : "-"});
  }
  std::cout << "\n";
  table.Print(std::cout, color);
}

absl::Status Run(const Options& o) {
  if (int{!o.from.empty()} + int{!o.devices.empty()} + int{!o.simulate.empty()} != 1) {
    return InvalidArgument("expected one of --compare, --from and --simulate");
  }
  std::string json;
  if (!o.from.empty()) {
    TANDEM_ASSIGN_OR_RETURN(json, ReadText(o.from));
  } else if (!o.simulate.empty()) {
    TANDEM_ASSIGN_OR_RETURN(
        const Comparison simulated,
        SimulateComparison(
            {.machine = o.simulate, .quick = o.quick, .only = o.only, .longest = o.longest}));
    json = ToJson(simulated);
  } else {
    if (!o.compute.device.empty()) {
      return InvalidArgument("--device: devices are named by --compare");
    }
    ComparisonOptions options;
    TANDEM_ASSIGN_OR_RETURN(options.context, ToContextOptions(o.compute));
    options.devices = o.devices;
    options.quick = o.quick;
    options.only = o.only;
    options.longest = o.longest;
    Progress progress("measuring");
    options.progress = [&](int64_t done, int64_t total, const std::string& what) {
      progress.Update(done, total, what);
    };
    TANDEM_ASSIGN_OR_RETURN(const Comparison measured, MeasureComparison(options));
    json = ToJson(measured);
  }
  // What is shown is what the file says.
  TANDEM_ASSIGN_OR_RETURN(const Comparison comparison, ComparisonFromJson(json));
  if (!o.json.empty()) TANDEM_RETURN_IF_ERROR(WriteText("--json", o.json, ToJson(comparison)));
  if (!o.html.empty()) TANDEM_RETURN_IF_ERROR(WriteText("--html", o.html, ToHtml(comparison)));
  Print(comparison);
  return absl::OkStatus();
}

}  // namespace

void AddBench(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "bench", "Compare devices over a grid of calls: table, JSON and HTML report with plots");
  command->add_option("--compare", o->devices, "devices to measure: cpu,cuda (or cuda:emulated)")
      ->delimiter(',')
      ->check(CLI::IsMember({"cpu", "cuda", "cuda:emulated"}));
  command->add_option("--from", o->from, "show a file that --json wrote, instead of measuring");
  command->add_option("--simulate", o->simulate,
                      "show a machine that does not exist, where there is no GPU: " +
                          absl::StrJoin(SimulatedMachineNames(), ", "));
  command->add_option("--json", o->json, "write the figures to this file");
  command->add_option("--html", o->html, "write a report with plots to this file");
  command->add_flag("--quick", o->quick, "fewer lengths, about half a minute on a CPU");
  command->add_option("--only", o->only,
                      "only series with this in their name, e.g. attention_decode");
  command->add_option("--longest", o->longest, "leave out lengths beyond this")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  AddComputeOptions(*command, o->compute);
  command->callback([o, &action] {
    action = [o] {
      const absl::Status status = Run(*o);
      return status.ok() ? kExitOk : Report(status);
    };
  });
}

}  // namespace tandem::tools
