// Memory that calls and tensors will take on a device, before there are any: for planning.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/ops/attention.h"
#include "core/ops/matmul.h"
#include "dispatch/context.h"

namespace tandem {

// Of the kernel that would run the call on `device`, all its operands being there. Only shapes,
// types and strides are looked at: memory behind the views is not touched, but they must be aligned
// as they will be. Unimplemented: no kernel can.
absl::StatusOr<int64_t> WorkspaceNeed(Context& context, DeviceKind device, const MatMulArgs& args);
absl::StatusOr<int64_t> WorkspaceNeed(Context& context, DeviceKind device,
                                      const AttentionArgs& args);

// Of the GPU's memory, what caches and weights may take: what is free, within the context's limit,
// but for a sixteenth that is left to workspaces. 0 without a GPU that says.
int64_t FreeGpuBytes(Context& context);

// Memory of the device that an allocation of so many bytes takes.
int64_t BlockBytes(DeviceKind device, int64_t bytes);

}  // namespace tandem
