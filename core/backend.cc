#include "core/backend.h"

#include <string>

#include "core/status.h"

namespace tandem {

absl::Status Backend::BeginCapture(Stream&) {
  return Unimplemented("graph: ", std::string(Name(device().kind)), " runs work at once");
}

absl::StatusOr<std::unique_ptr<RecordedWork>> Backend::EndCapture(Stream& stream) {
  return InvalidArgument("graph: the stream of ", std::string(Name(stream.device().kind)),
                         " is not captured");
}

}  // namespace tandem
