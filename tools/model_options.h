// Options of the commands that run a model.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "model/decoder.h"
#include "tools/command.h"

namespace CLI {
class App;
}

namespace tandem::tools {

struct ModelArguments {
  std::string path;
  std::string kv_dtype = "f16";
  int64_t capacity = 0;
  int64_t ubatch = 512;
  bool pack = false;
  bool no_pack = false;
  std::optional<int64_t> gpu_layers;
  uint64_t gpu_memory_limit = 0;  // bytes; 0: none
};

void AddModelArguments(CLI::App& command, ModelArguments& arguments);
// With the limit of GPU memory.
absl::StatusOr<ContextOptions> ToContextOptions(const ComputeOptions& options,
                                                const ModelArguments& arguments);
// On one device or, with --device hybrid (or TANDEM_DEVICE=hybrid), on both.
absl::StatusOr<std::shared_ptr<const Model>> OpenModel(Context& context,
                                                       const ModelArguments& arguments);
absl::StatusOr<SessionOptions> ToSessionOptions(const ModelArguments& arguments);

}  // namespace tandem::tools
