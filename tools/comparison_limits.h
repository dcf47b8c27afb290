// The limits of a machine that times are held against: memory, arithmetic, copies.
#pragma once

#include "absl/status/statusor.h"
#include "dispatch/context.h"
#include "tools/comparison.h"

namespace tandem::tools {

// Of one device of the context, measured. An emulated device has none.
absl::StatusOr<ComparedDevice> MeasureLimits(Context& context, DeviceKind kind, bool quick);

}  // namespace tandem::tools
