#include "tools/model_options.h"

#include <CLI/CLI.hpp>
#include <utility>

#include "core/status.h"
#include "model/recovery.h"

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
  command
      .add_option("--gpu-layers", arguments.gpu_layers,
                  "with --device hybrid: keep this many layers, the last ones, on the GPU, and "
                  "with them the output matrix; with all layers everything (default: chosen)")
      ->check(CLI::NonNegativeNumber);
  command
      .add_option("--gpu-memory-limit", arguments.gpu_memory_limit,
                  "most GPU memory to use: bytes, or 512M, 1.5G, ...")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  command.add_flag(
      "--no-pack", arguments.no_pack,
      "leave quantised and BF16 weights as stored: faster loading, slower from then on");
}

absl::StatusOr<ContextOptions> ToContextOptions(const ComputeOptions& options,
                                                const ModelArguments& arguments) {
  TANDEM_ASSIGN_OR_RETURN(ContextOptions context, ToContextOptions(options));
  if (arguments.gpu_memory_limit > INT64_MAX) {
    return InvalidArgument("--gpu-memory-limit: expected less than 2^63 bytes");
  }
  context.cuda_memory_limit = static_cast<int64_t>(arguments.gpu_memory_limit);
  return context;
}

absl::StatusOr<std::shared_ptr<const Model>> OpenModel(Context& context,
                                                       const ModelArguments& arguments) {
  ModelOptions options;
  options.pack_weights = arguments.pack;
  options.pack_in_place = !arguments.no_pack;
  if (context.options().hybrid) {
    HybridOptions& hybrid = options.hybrid.emplace();
    hybrid.gpu_layers = arguments.gpu_layers;
    TANDEM_ASSIGN_OR_RETURN(hybrid.session, ToSessionOptions(arguments));
  } else if (arguments.gpu_layers) {
    return InvalidArgument(
        "--gpu-layers: expected with --device hybrid (or TANDEM_DEVICE=hybrid) only");
  }
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> file, GgufFile::Open(arguments.path));
  return LoadModel(context, std::move(file), options);
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
