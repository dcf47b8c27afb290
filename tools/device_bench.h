// What `tandem bench-device` measures with: tensors on the device, and medians by its events.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/tensor.h"
#include "dispatch/context.h"

namespace tandem::tools {

struct AttentionShape {
  int64_t batch = 0, heads = 0, kv_heads = 0, q_len = 0, kv_len = 0, head_dim = 0;
  bool causal = false;  // bottom-right
};

struct DeviceBenchRow {
  std::string what;
  std::string kernel;    // that ran; "-" for what is no op
  double seconds = 0.0;  // median
  double bytes = 0.0;    // read and written, each once
  double flops = 0.0;
  // Of matrix products.
  std::string dtype = {};
  int64_t m = 0, n = 0, k = 0;
  std::string by = {};      // "library", or the kernel's name
  double of_library = 0.0;  // the library's time for the same product / this one; 0: not known
  AttentionShape attention = {};  // batch = 0: none
};

// Runs on the CUDA device of a context.
class DeviceBench {
 public:
  // `bytes`: about as large is an operand.
  DeviceBench(Context& context, int64_t bytes, int repeats)
      : context_(context),
        device_(*context.device(DeviceKind::kCuda)),
        bytes_(bytes),
        repeats_(repeats) {}

  Context& context() { return context_; }
  ContextDevice& device() { return device_; }
  int64_t bytes() const { return bytes_; }
  std::vector<DeviceBenchRow>& rows() { return rows_; }

  absl::StatusOr<Tensor> Zeros(DType dtype, const Shape& shape);
  // Normal numbers of deviation 1; those of a million repeat. A GPU's clock, and so the speed of
  // its tensor cores, depends on the data.
  absl::StatusOr<Tensor> Normals(DType dtype, const Shape& shape);
  // Times `run`, which puts work on the device's stream, and adds a row, whose other fields the
  // caller may fill in.
  absl::StatusOr<DeviceBenchRow*> Measure(const std::string& what, double bytes, double flops,
                                          const std::function<absl::Status()>& run);

 private:
  // The kernel that ran it.
  absl::StatusOr<std::string> WarmUp(const std::function<absl::Status()>& run);
  absl::StatusOr<Tensor> Upload(const Tensor& host);

  Context& context_;
  ContextDevice& device_;
  const int64_t bytes_;
  const int repeats_;
  std::vector<DeviceBenchRow> rows_;
};

// Products by the library alone, by the kernels, and with what follows them. `library`: its name,
// or why there is none.
absl::Status MeasureMatMuls(DeviceBench& bench, std::string& library);

// Decoding with caches of up to 4 * bytes(), and prompts whose queries have up to bytes().
absl::Status MeasureAttention(DeviceBench& bench);

}  // namespace tandem::tools
