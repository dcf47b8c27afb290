#include "dispatch/graph.h"

#include <string>

#include "core/status.h"

namespace tandem {

absl::StatusOr<Graph> Graph::Capture(Context& context, DeviceKind kind,
                                     absl::FunctionRef<absl::Status()> work) {
  ContextDevice* device = context.device(kind);
  if (device == nullptr) {
    return InvalidArgument("device: ", std::string(Name(kind)), " is not present");
  }
  if (context.trace().enabled()) {
    return absl::FailedPreconditionError("graph: a trace waits for every op, a graph cannot");
  }
  TANDEM_RETURN_IF_ERROR(device->backend->BeginCapture(*device->stream));
  const std::shared_ptr<Buffer> scratch = device->scratch;
  context.health().SetRecording(true);
  absl::Status status = work();
  context.health().SetRecording(false);
  absl::StatusOr<std::unique_ptr<RecordedWork>> recorded =
      device->backend->EndCapture(*device->stream);
  TANDEM_RETURN_IF_ERROR(status);
  TANDEM_RETURN_IF_ERROR(recorded.status());
  if (device->scratch != scratch) {
    return absl::FailedPreconditionError("graph: the workspace grew: run the work once before");
  }
  Graph graph;
  graph.work_ = *std::move(recorded);
  graph.scratch_ = scratch;
  return graph;
}

absl::Status Graph::Launch() {
  if (work_ == nullptr) return absl::FailedPreconditionError("graph: nothing was captured");
  return work_->Launch();
}

}  // namespace tandem
