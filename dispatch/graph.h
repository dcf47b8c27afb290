// Ops recorded once and launched again and again: on a GPU one call instead of one per kernel.
//
//   RunStep();                                   once for real: the workspace gets its size
//   graph = Graph::Capture(context, kCuda, RunStep)
//   graph.Launch();                              as often as wanted
//
// A launch does what the recorded calls did, on the same addresses: what changes from one launch to
// the next must lie in memory that the calls read when they run (tensors on the device, or page-
// locked host memory that a recorded Copy reads). Numbers in argument structs and lists in host
// memory are recorded as they were.
#pragma once

#include <memory>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "dispatch/context.h"

namespace tandem {

class Graph {
 public:
  // Records what `work` puts on the device's stream; nothing of it runs. It may only call ops and
  // Copy on operands that are there already, and must not need more workspace than the context has.
  // Its error is returned, and the stream is as before. InvalidArgument: no such device.
  // Unimplemented: the device records nothing (the CPU). FailedPrecondition: the context traces,
  // which waits for every op.
  static absl::StatusOr<Graph> Capture(Context& context, DeviceKind device,
                                       absl::FunctionRef<absl::Status()> work);

  Graph() = default;  // nothing: Launch is FailedPrecondition
  explicit operator bool() const { return work_ != nullptr; }

  // Puts the work on the stream. The context must be alive.
  absl::Status Launch();

 private:
  std::unique_ptr<RecordedWork> work_;
  std::shared_ptr<Buffer> scratch_;  // the workspace that was recorded, should the context grow its
};

}  // namespace tandem
