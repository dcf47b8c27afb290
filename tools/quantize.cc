// tandem quantize: a model file with its matrices in another type.
#include "model/quantize.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <map>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "tools/command.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

const std::vector<std::string> kTypes = {"q8_0",  "q6_k", "q5_k", "q4_k", "q4_0",
                                         "tq2_0", "f16",  "bf16", "f32"};

struct Options {
  ComputeOptions compute;
  std::string in;
  std::string out;
  std::string type;
  std::string output_type;
  std::vector<std::string> tensor_types;
  bool keep_embeddings = false;
};

absl::StatusOr<DType> ParseType(const std::string& option, const std::string& name) {
  const auto dtype = ParseDType(name);
  if (dtype && std::find(kTypes.begin(), kTypes.end(), name) != kTypes.end()) return *dtype;
  return InvalidArgument(option, ": unknown type '", name, "'");
}

absl::StatusOr<QuantizeOptions> ToQuantizeOptions(const Options& o) {
  QuantizeOptions options;
  TANDEM_ASSIGN_OR_RETURN(options.type, ParseType("--type", o.type));
  if (!o.output_type.empty()) {
    TANDEM_ASSIGN_OR_RETURN(options.output_type, ParseType("--output-type", o.output_type));
  }
  options.keep_embeddings = o.keep_embeddings;
  for (const std::string& choice : o.tensor_types) {
    const size_t equals = choice.find('=');
    if (equals == std::string::npos || equals == 0) {
      return InvalidArgument("--tensor-type: expected text=type, got '", choice, "'");
    }
    TANDEM_ASSIGN_OR_RETURN(const DType type,
                            ParseType("--tensor-type", choice.substr(equals + 1)));
    options.tensor_types.emplace_back(choice.substr(0, equals), type);
  }
  return options;
}

absl::Status Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(QuantizeOptions options, ToQuantizeOptions(o));
  TANDEM_ASSIGN_OR_RETURN(const ContextOptions context_options, ToContextOptions(o.compute));
  TANDEM_ASSIGN_OR_RETURN(const auto context, OpenContext(context_options));
  TANDEM_ASSIGN_OR_RETURN(const auto in, GgufFile::Open(o.in));
  Progress progress("quantize");
  struct Sum {
    int64_t tensors = 0, bytes = 0;
  };
  std::map<std::string, Sum> sums;
  options.on_tensor = [&](const QuantizedTensor& tensor) {
    Sum& sum = sums[tensor.to];
    ++sum.tensors;
    sum.bytes += tensor.bytes;
    if (tensor.fallback.empty()) return;
    progress.Clear();
    std::cerr << "tandem: tensor '" << tensor.name << "': " << tensor.fallback << "; it becomes "
              << tensor.to << "\n";
  };
  options.on_progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  TANDEM_ASSIGN_OR_RETURN(const QuantizeStats stats, QuantizeGguf(*context, *in, o.out, options));
  progress.Clear();
  Table table({"type", "tensors", "size"});
  for (const auto& [type, sum] : sums) {
    table.Row(
        {type, absl::StrFormat("%d", sum.tensors), HumanBytes(static_cast<double>(sum.bytes))});
  }
  table.Print(std::cout, UseColor(1));
  std::cout << o.out << ": " << HumanBytes(static_cast<double>(stats.output_bytes)) << ", "
            << absl::StrFormat("%.1f%% of %s\n",
                               100.0 * static_cast<double>(stats.output_bytes) /
                                   static_cast<double>(stats.input_bytes),
                               o.in);
  return absl::OkStatus();
}

}  // namespace

void AddQuantize(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("quantize", "Write a model with its matrices in a smaller type");
  command->add_option("input", o->in, "model file (GGUF) with F32, F16 or BF16 matrices")
      ->required();
  command->add_option("output", o->out, "file to write; replaced if it is there")->required();
  command->add_option("--type", o->type, "type of the matrices")
      ->required()
      ->check(CLI::IsMember(kTypes));
  command
      ->add_option("--output-type", o->output_type,
                   "type of the output matrix (which is the embedding too in tied models)")
      ->check(CLI::IsMember(kTypes));
  command->add_option("--tensor-type", o->tensor_types,
                      "type of the matrices whose names contain a text, as text=type (repeatable; "
                      "the last match counts)");
  command->add_flag("--keep-embeddings", o->keep_embeddings,
                    "leave token_embd.weight in the type it has");
  AddComputeOptions(*command, o->compute);
  command->callback([o, &action] {
    action = [o] {
      const absl::Status status = Run(*o);
      return status.ok() ? kExitOk : Report(status);
    };
  });
}

}  // namespace tandem::tools
