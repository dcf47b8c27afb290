// Small arrays of the host (lists of lengths, page tables, tables of tensors) as kernels need them,
// in device memory.
//
// They travel as the parameters of a kernel, which the runtime copies while it queues the launch:
// the host may change its array at once, nobody waits for the stream, nothing is allocated, and a
// captured graph holds the values itself. A copy from pageable host memory would wait for the
// stream and cannot be captured; pinned memory would have to outlive the stream's work, and every
// graph.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "cuda/kernels/stage.h"

namespace tandem::cuda {

class CudaStream;

// Queues the words it is given to be written to `out`, in order; 1020 take a launch.
class Stager {
 public:
  Stager(CudaStream& stream, void* out) : stream_(stream) {
    params_.out = static_cast<uint32_t*>(out);
  }
  absl::Status Put(uint32_t word);
  // `bytes`: whole words.
  absl::Status Put(const void* data, int64_t bytes);
  // After the last one.
  absl::Status Flush();

 private:
  CudaStream& stream_;
  StageParams params_ = {};
};

}  // namespace tandem::cuda
