#include "cuda/kernels/device_list.h"

#include "core/status.h"
#include "cuda/kernels/stager.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

bool OnHost(const TensorView& list) {
  return list.present() && list.device.kind == DeviceKind::kCpu && !list.empty();
}

}  // namespace

void CountList(Workspace& workspace, const TensorView& list) {
  if (OnHost(list)) workspace.Take<int32_t>(list.num_elements());
}

absl::StatusOr<DeviceTable> StageTable(const KernelContext& context, const TensorView& table) {
  if (!table.present()) return DeviceTable();
  if (!OnHost(table)) {
    return DeviceTable{table.As<const int32_t>(), table.rank() == 2 ? table.stride(0) : 0,
                       table.stride(-1)};
  }
  const int64_t rows = table.rank() == 2 ? table.dim(0) : 1, columns = table.dim(-1);
  auto* data = context.workspace->Take<int32_t>(rows * columns);
  if (!context.workspace->ok()) return absl::InternalError("workspace too small for a list");
  Stager stager(CudaStream::Of(context), data);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      TANDEM_RETURN_IF_ERROR(stager.Put(static_cast<uint32_t>(*table.At<int32_t>(
          (table.rank() == 2 ? i * table.stride(0) : 0) + j * table.stride(-1)))));
    }
  }
  TANDEM_RETURN_IF_ERROR(stager.Flush());
  return DeviceTable{data, columns, 1};
}

absl::StatusOr<DeviceList> StageList(const KernelContext& context, const TensorView& list) {
  TANDEM_ASSIGN_OR_RETURN(const DeviceTable table, StageTable(context, list));
  return DeviceList{table.data, table.stride};
}

}  // namespace tandem::cuda
