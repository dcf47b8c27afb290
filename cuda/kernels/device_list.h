// Lists of lengths and indices as kernels read them, from device memory. A list that the caller has
// in host memory is written to scratch first (stager.h); the caller may change it on return.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/kernel.h"
#include "core/tensor_view.h"
#include "cuda/kernels/device_list_view.h"

namespace tandem::cuda {

// Bytes of scratch that StageList takes for this list (in a counting workspace: counts them).
void CountList(Workspace& workspace, const TensorView& list);
// Rank 1. Internal: the workspace is too small.
absl::StatusOr<DeviceList> StageList(const KernelContext& context, const TensorView& list);
// Rank 1 or 2.
absl::StatusOr<DeviceTable> StageTable(const KernelContext& context, const TensorView& table);

}  // namespace tandem::cuda
