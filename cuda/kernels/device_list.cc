#include "cuda/kernels/device_list.h"

#include <vector>

#include "core/status.h"
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
  // Copies from pageable memory have left it when the call returns: the vector may go.
  std::vector<int32_t> values;
  values.reserve(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      values.push_back(
          *table.At<int32_t>((table.rank() == 2 ? i * table.stride(0) : 0) + j * table.stride(-1)));
    }
  }
  auto* data = context.workspace->Take<int32_t>(rows * columns);
  if (!context.workspace->ok()) return absl::InternalError("workspace too small for a list");
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_RETURN_IF_ERROR(
      stream.runtime().Copy(stream.handle(), data, values.data(), rows * columns * 4));
  return DeviceTable{data, columns, 1};
}

absl::StatusOr<DeviceList> StageList(const KernelContext& context, const TensorView& list) {
  TANDEM_ASSIGN_OR_RETURN(const DeviceTable table, StageTable(context, list));
  return DeviceList{table.data, table.stride};
}

}  // namespace tandem::cuda
