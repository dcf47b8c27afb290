#include "cuda/conformance/case_helpers.h"

#include "core/status.h"

namespace tandem::cuda {

Bytes RandomBytes(Random& random, size_t count) {
  Bytes bytes(count);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

float RandomFloat(Random& random) { return static_cast<float>(random() % 2001) / 1000.0f - 1.0f; }

int64_t SwizzledChunk(int64_t row, int64_t chunk, int swizzle) {
  switch (swizzle) {
    case 128:
      return chunk ^ (row % 8);
    case 64:
      return chunk ^ (row / 2 % 4);
    case 32:
      return chunk ^ (row / 4 % 2);
    default:
      return chunk;
  }
}

LaunchConfig Config(int64_t blocks, int64_t threads, int64_t shared_bytes) {
  LaunchConfig config;
  config.grid.x = blocks;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  return config;
}

std::function<absl::StatusOr<Bytes>(ConformanceRunner&)> Simple(Primitive primitive,
                                                                const LaunchConfig& config,
                                                                const std::array<Bytes, 3>& inputs,
                                                                size_t out_bytes,
                                                                const std::array<int32_t, 12>& v) {
  return [=](ConformanceRunner& runner) -> absl::StatusOr<Bytes> {
    PrimitiveParams params;
    params.v = v;
    TANDEM_ASSIGN_OR_RETURN(params.a, runner.Upload(inputs[0]));
    TANDEM_ASSIGN_OR_RETURN(params.b, runner.Upload(inputs[1]));
    TANDEM_ASSIGN_OR_RETURN(params.c, runner.Upload(inputs[2]));
    TANDEM_ASSIGN_OR_RETURN(params.out, runner.Upload(Bytes(out_bytes, std::byte{0xEE})));
    TANDEM_RETURN_IF_ERROR(runner.Launch(gpu::PrimitiveFunction(primitive),
                                         emulated::PrimitiveFunction(primitive), config, &params));
    return runner.Download(params.out, out_bytes);
  };
}

}  // namespace tandem::cuda
