// Options of the commands that run a model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/decoder.h"

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
};

void AddModelArguments(CLI::App& command, ModelArguments& arguments);
absl::StatusOr<std::shared_ptr<const Model>> OpenModel(Context& context,
                                                       const ModelArguments& arguments);
absl::StatusOr<SessionOptions> ToSessionOptions(const ModelArguments& arguments);

}  // namespace tandem::tools
