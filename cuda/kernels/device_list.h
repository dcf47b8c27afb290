// Lists of lengths and indices as kernels read them, from device memory. A list that the caller has
// in host memory is copied to scratch first.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "core/kernel.h"
#include "core/tensor_view.h"
#include "cuda/kernels/mask.h"

namespace tandem::cuda {

// Bytes of scratch that StageList takes for this list (in a counting workspace: counts them).
void CountList(Workspace& workspace, const TensorView& list);
// Rank 1. Internal: the workspace is too small.
absl::StatusOr<DeviceList> StageList(const KernelContext& context, const TensorView& list);
// Rank 2: entry (i, j) is at data[i * row_stride + j * stride].
struct DeviceTable {
  const int32_t* data = nullptr;
  int64_t row_stride = 0, stride = 0;
};
absl::StatusOr<DeviceTable> StageTable(const KernelContext& context, const TensorView& table);

}  // namespace tandem::cuda
