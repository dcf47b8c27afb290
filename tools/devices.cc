// tandem devices: what this machine is, and the limits that every other figure is measured against.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "cpu/backend.h"
#include "cuda/backend.h"
#include "tools/command.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  bool json = false;
  bool no_measure = false;
};

// One line of the measured table: a rate on one thread and on all.
struct Rate {
  std::string what;
  std::string unit;
  double one = 0.0;
  double all = 0.0;
};

std::vector<Rate> Measure(const cpu::CpuInfo& info) {
  Progress progress("measuring");
  std::vector<Rate> rates;
  const int threads = info.cores;
  int64_t last_cache = int64_t{32} << 20;
  for (const cpu::CacheLevel& cache : info.caches) last_cache = cache.bytes;
  // Eight times the last cache is DRAM; a quarter of it, shared by all threads, is not.
  const int64_t dram =
      std::min(std::max(last_cache * 8, int64_t{256} << 20), info.memory_bytes / 8);
  progress.Update(0, 4, "DRAM read bandwidth");
  rates.push_back({"read, DRAM", "GB/s", cpu::MeasureReadBandwidth(1, dram),
                   cpu::MeasureReadBandwidth(threads, dram)});
  progress.Update(1, 4, "cache read bandwidth");
  rates.push_back({"read, last cache", "GB/s", cpu::MeasureReadBandwidth(1, last_cache / 4),
                   cpu::MeasureReadBandwidth(threads, last_cache / 4)});
  for (cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
    if (isa > info.features.isa) continue;
    progress.Update(2, 4, "multiply-add rate");
    rates.push_back({absl::StrFormat("f32 multiply-add, %s", std::string(cpu::Name(isa))),
                     "GFLOP/s", cpu::MeasureFmaRate(1, isa), cpu::MeasureFmaRate(threads, isa)});
  }
  return rates;
}

std::string FeatureList(const cpu::CpuFeatures& features) {
  std::string text(cpu::Name(features.isa));
  if (features.avx512_vnni) text += " avx512_vnni";
  if (features.avx512_bf16) text += " avx512_bf16";
  if (features.avx512_fp16) text += " avx512_fp16";
  if (features.avx_vnni) text += " avx_vnni";
  if (features.amx_bf16) text += " amx_bf16";
  if (features.amx_int8) text += " amx_int8";
  return text;
}

void PrintJson(const cpu::CpuInfo& info, const cuda::Probe& probe, const std::vector<Rate>& rates) {
  nlohmann::json json;
  nlohmann::json& cpu = json["cpu"];
  cpu = {{"model", info.model},
         {"cores", info.cores},
         {"hardware_threads", info.hardware_threads},
         {"numa_nodes", info.numa_nodes},
         {"memory_bytes", info.memory_bytes},
         {"isa", FeatureList(info.features)},
         {"caches", nlohmann::json::array()},
         {"rates", nlohmann::json::array()}};
  for (const auto& cache : info.caches) {
    cpu["caches"].push_back(
        {{"level", cache.level}, {"bytes", cache.bytes}, {"shared_by_cores", cache.shared_by}});
  }
  for (const Rate& rate : rates) {
    cpu["rates"].push_back({{"what", rate.what},
                            {"unit", rate.unit},
                            {"one_thread", rate.one},
                            {"all_threads", rate.all}});
  }
  nlohmann::json& cuda = json["cuda"];
  cuda = {{"built", probe.built_with_cuda},
          {"toolkit", probe.toolkit_version},
          {"driver", probe.driver_version},
          {"message", probe.message},
          {"devices", nlohmann::json::array()}};
  for (const auto& device : probe.devices) {
    cuda["devices"].push_back(
        {{"index", device.index},
         {"name", device.name},
         {"compute_capability", absl::StrFormat("%d.%d", device.compute_capability_major,
                                                device.compute_capability_minor)},
         {"multiprocessors", device.multiprocessors},
         {"memory_bytes", device.memory_bytes}});
  }
  std::cout << json.dump(2) << "\n";
}

void PrintText(const cpu::CpuInfo& info, const cuda::Probe& probe, const std::vector<Rate>& rates) {
  const bool color = UseColor(1);
  std::cout << Styled("cpu", Style::kBold, color) << "   " << info.model << "\n"
            << absl::StrFormat("      %d cores, %d NUMA node%s, %s memory\n", info.cores,
                               info.numa_nodes, info.numa_nodes == 1 ? "" : "s",
                               HumanBytes(static_cast<double>(info.memory_bytes)))
            << "      instruction sets: " << FeatureList(info.features) << "\n      caches:";
  for (const auto& cache : info.caches) {
    std::cout << absl::StrFormat(" L%d %s", cache.level,
                                 HumanBytes(static_cast<double>(cache.bytes)));
    if (cache.shared_by > 1) std::cout << absl::StrFormat(" (shared by %d)", cache.shared_by);
  }
  std::cout << "\n";
  if (!rates.empty()) {
    Table table({"      measured", "unit", "1 thread",
                 absl::StrFormat("%d thread%s", info.cores, info.cores == 1 ? "" : "s")});
    for (const Rate& rate : rates) {
      table.Row({"      " + rate.what, rate.unit, absl::StrFormat("%.1f", rate.one),
                 absl::StrFormat("%.1f", rate.all)});
    }
    table.Print(std::cout, color);
  }
  std::cout << Styled("cuda", Style::kBold, color) << "  " << probe.message << "\n";
  for (const auto& device : probe.devices) {
    std::cout << absl::StrFormat("      cuda:%d  %s, compute capability %d.%d, %d SMs, %s\n",
                                 device.index, device.name, device.compute_capability_major,
                                 device.compute_capability_minor, device.multiprocessors,
                                 HumanBytes(static_cast<double>(device.memory_bytes)));
  }
}

int Run(const Options& options) {
  const cpu::CpuInfo info = cpu::DescribeCpu();
  const cuda::Probe probe = cuda::ProbeDevices();
  const std::vector<Rate> rates = options.no_measure ? std::vector<Rate>{} : Measure(info);
  options.json ? PrintJson(info, probe, rates) : PrintText(info, probe, rates);
  return kExitOk;
}

}  // namespace

void AddDevices(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "devices", "Show the devices, their features, and their measured bandwidth and rates");
  command->add_flag("--json", options->json, "machine-readable output");
  command->add_flag("--no-measure", options->no_measure, "describe only, measure nothing");
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace tandem::tools
