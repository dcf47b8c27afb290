#include "tools/model_options.h"

#include <CLI/CLI.hpp>

#include "core/status.h"

namespace tandem::tools {

void AddModelArguments(CLI::App& command, ModelArguments& arguments) {
  command.add_option("-m,--model", arguments.path, "model file (GGUF)")->required();
  command
      .add_option("--kv-dtype,--kv-type", arguments.kv_dtype, "element type of the key/value cache")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "i8"}))
      ->capture_default_str();
  command
      .add_option("-c,--context", arguments.capacity,
                  "tokens of context (default: the model's, at most 4096)")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--ubatch", arguments.ubatch, "prompt tokens computed at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_flag("--pack", arguments.pack,
                   "repack F32, F16 and BF16 weights: faster prompts for a second copy in memory");
  command.add_flag("--no-pack", arguments.no_pack,
                   "leave quantised weights as stored: faster loading, slower from then on");
}

absl::StatusOr<std::shared_ptr<const Model>> OpenModel(Context& context,
                                                       const ModelArguments& arguments) {
  ModelOptions options;
  options.pack_weights = arguments.pack;
  options.pack_quantized = !arguments.no_pack;
  return Model::Open(context, arguments.path, options);
}

absl::StatusOr<SessionOptions> ToSessionOptions(const ModelArguments& arguments) {
  SessionOptions options;
  options.capacity = arguments.capacity;
  options.ubatch = arguments.ubatch;
  const auto dtype = ParseDType(arguments.kv_dtype);
  if (!dtype) return InvalidArgument("--kv-dtype: unknown dtype '", arguments.kv_dtype, "'");
  options.kv_dtype = *dtype;
  return options;
}

}  // namespace tandem::tools
