#include "dispatch/memory_need.h"

#include <algorithm>

#include "core/backend.h"
#include "core/status.h"
#include "cuda/backend.h"
#include "dispatch/run.h"

namespace tandem {
namespace {

constexpr int64_t kReserveDivisor = 16;

template <typename Args>
absl::StatusOr<int64_t> Need(Context& context, DeviceKind kind, const Args& args) {
  ContextDevice* device = context.device(kind);
  if (device == nullptr) {
    return InvalidArgument("device: ", std::string(Name(kind)), " is not present");
  }
  OwnedArgs<Args> owned(args);
  owned.ForEach([&](TensorView& view, Access) {
    if (view.present()) view.device = device->backend->device();
  });
  KernelContext kernel_context;
  kernel_context.stream = device->stream.get();
  const KernelPreference* preference = context.kernel_preferences().Find(FactsOf(owned.args), kind);
  TANDEM_ASSIGN_OR_RETURN(const Kernel<Args>* kernel,
                          internal::SelectOn(context, kind, owned.args, preference));
  return kernel->workspace_bytes(kernel_context, owned.args);
}

}  // namespace

absl::StatusOr<int64_t> WorkspaceNeed(Context& context, DeviceKind device, const MatMulArgs& args) {
  return Need(context, device, args);
}
absl::StatusOr<int64_t> WorkspaceNeed(Context& context, DeviceKind device,
                                      const AttentionArgs& args) {
  return Need(context, device, args);
}

int64_t FreeGpuBytes(Context& context) {
  ContextDevice* gpu = context.device(DeviceKind::kCuda);
  if (gpu == nullptr) return 0;
  const absl::StatusOr<MemoryInfo> memory = gpu->backend->memory();
  if (!memory.ok()) return 0;
  int64_t bytes = memory->free_bytes;
  if (const int64_t limit = context.options().cuda_memory_limit; limit > 0) {
    bytes = std::min(bytes, limit - gpu->backend->allocator().bytes_in_use());
  }
  return std::max<int64_t>(0, bytes - bytes / kReserveDivisor);
}

int64_t BlockBytes(DeviceKind device, int64_t bytes) {
  return device == DeviceKind::kCuda ? cuda::BlockBytes(bytes) : bytes;
}

}  // namespace tandem
