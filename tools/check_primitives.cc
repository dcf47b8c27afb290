// tandem check-primitives: the wrappers of device instructions on a GPU or on the emulated device,
// against their documentation and, where there is one, against a recording of a GPU.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/conformance/suite.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/runtime/runtime.h"
#include "tools/command.h"

namespace tandem::tools {
namespace {

struct Options {
  std::string device = "cuda:emulated";
  std::string schedule = "fifo";
  std::string filter;
  std::string record;
  std::string golden;
  bool json = false;
};

// CBOR: {"device": text, "cases": {name: bytes}}.
absl::Status WriteRecording(const std::string& path, const std::string& device,
                            const std::vector<cuda::ConformanceResult>& results) {
  nlohmann::json cases = nlohmann::json::object();
  for (const cuda::ConformanceResult& r : results) {
    if (!r.skipped.empty()) continue;
    const auto* bytes = reinterpret_cast<const uint8_t*>(r.output.data());
    cases[r.name] = nlohmann::json::binary({bytes, bytes + r.output.size()});
  }
  const std::vector<uint8_t> cbor =
      nlohmann::json::to_cbor(nlohmann::json{{"device", device}, {"cases", cases}});
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(cbor.data()), static_cast<std::streamsize>(cbor.size()));
  file.flush();
  if (!file) return InvalidArgument("--record: cannot write '", path, "'");
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, cuda::Bytes>> ReadRecording(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto json = nlohmann::json::from_cbor(bytes, /*strict=*/true, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("cases") || !json["cases"].is_object()) {
    return InvalidArgument("--golden: '", path, "' is not a recording of check-primitives");
  }
  std::map<std::string, cuda::Bytes> cases;
  for (const auto& [name, value] : json["cases"].items()) {
    if (!value.is_binary()) return InvalidArgument("--golden: '", path, "': case '", name, "'");
    const auto& binary = value.get_binary();
    const auto* data = reinterpret_cast<const std::byte*>(binary.data());
    cases[name] = cuda::Bytes(data, data + binary.size());
  }
  return cases;
}

absl::StatusOr<int> Run(const Options& o) {
  std::unique_ptr<cuda::Runtime> runtime;
  if (o.device == "cuda:emulated") {
    cuda::EmulatedRuntimeOptions emulated;
    TANDEM_ASSIGN_OR_RETURN(emulated.emulator, cuda::emulator::EmulatorOptions::Parse(o.schedule));
    runtime = cuda::MakeEmulatedRuntime(emulated);
  } else if (o.device == "cuda") {
    TANDEM_ASSIGN_OR_RETURN(runtime, cuda::MakeCudaRuntime());
  } else {
    return InvalidArgument("--device: expected cuda or cuda:emulated, got '", o.device, "'");
  }
  const cuda::Probe probe = runtime->Devices();
  if (probe.devices.empty()) return absl::FailedPreconditionError(probe.message);
  const cuda::DeviceInfo& device = probe.devices.front();
  std::map<std::string, cuda::Bytes> golden;
  if (!o.golden.empty()) {
    TANDEM_ASSIGN_OR_RETURN(golden, ReadRecording(o.golden));
  }

  int passed = 0, failed = 0, skipped = 0;
  nlohmann::json rows = nlohmann::json::array();
  std::vector<cuda::ConformanceResult> results;
  for (const cuda::ConformanceCase& c : cuda::ConformanceCases()) {
    if (c.name.find(o.filter) == std::string::npos) continue;
    cuda::ConformanceResult result = cuda::RunConformanceCase(c, *runtime, device);
    const auto recorded = golden.find(c.name);
    if (result.error.empty() && result.skipped.empty() && recorded != golden.end()) {
      const std::string difference = cuda::Difference(c, recorded->second, result.output);
      if (!difference.empty()) result.error = absl::StrCat("unlike the recording: ", difference);
    }
    const char* verdict = !result.skipped.empty() ? "skipped"
                          : result.error.empty()  ? "ok"
                                                  : "FAILED";
    (!result.skipped.empty() ? skipped : result.error.empty() ? passed : failed) += 1;
    rows.push_back(
        {{"case", c.name}, {"verdict", verdict}, {"why", result.skipped + result.error}});
    if (!o.json && verdict[0] != 'o') {
      std::cout << verdict << "  " << c.name << ": " << result.skipped << result.error << "\n";
    }
    results.push_back(std::move(result));
  }
  if (results.empty()) return InvalidArgument("--filter: no case has '", o.filter, "' in its name");
  const std::string name =
      absl::StrCat(o.device == "cuda" ? "cuda" : "cuda:emulated", " ", device.name);
  if (!o.record.empty()) TANDEM_RETURN_IF_ERROR(WriteRecording(o.record, name, results));
  if (o.json) {
    const nlohmann::json json = {{"device", name},
                                 {"passed", passed},
                                 {"failed", failed},
                                 {"skipped", skipped},
                                 {"cases", rows}};
    std::cout << json.dump(2) << "\n";
  } else {
    std::cout << name << ": " << passed << " passed, " << failed << " failed, " << skipped
              << " skipped\n";
  }
  return failed == 0 ? kExitOk : kExitFailed;
}

}  // namespace

void AddCheckPrimitives(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("check-primitives",
                         "Check the wrappers of device instructions that CUDA kernels are made of");
  command->add_option("--device", options->device, "cuda or cuda:emulated")->capture_default_str();
  command
      ->add_option("--schedule", options->schedule,
                   "of the emulated device: fifo, lifo, reverse or random:SEED, then ,eager or "
                   ",random")
      ->capture_default_str();
  command->add_option("--filter", options->filter, "only cases with this text in their names");
  command->add_option("--record", options->record, "write what the device answered to FILE");
  command->add_option("--golden", options->golden, "compare with a recording as well");
  command->add_flag("--json", options->json, "print JSON");
  command->callback([options, &action] {
    action = [options] {
      const absl::StatusOr<int> code = Run(*options);
      return code.ok() ? *code : Report(code.status());
    };
  });
}

}  // namespace tandem::tools
