#include "cuda/kernels/stager.h"

#include <cstring>

#include "core/status.h"
#include "cuda/stream.h"

namespace tandem::cuda {

absl::Status Stager::Put(uint32_t word) {
  if (params_.count == StageParams::kWords) TANDEM_RETURN_IF_ERROR(Flush());
  params_.words[params_.count++] = word;
  return absl::OkStatus();
}

absl::Status Stager::Put(const void* data, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, static_cast<const char*>(data) + at, sizeof(word));
    TANDEM_RETURN_IF_ERROR(Put(word));
  }
  return absl::OkStatus();
}

absl::Status Stager::Flush() {
  if (params_.count == 0) return absl::OkStatus();
  LaunchConfig config;
  config.block.x = 256;
  TANDEM_RETURN_IF_ERROR(stream_.Launch(StageFunction(stream_), config, params_));
  params_.out += params_.count;
  params_.count = 0;
  return absl::OkStatus();
}

}  // namespace tandem::cuda
