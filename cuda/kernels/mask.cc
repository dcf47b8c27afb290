#include "cuda/kernels/mask.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/device_list.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

int64_t WorkspaceBytes(const KernelContext&, const MaskArgs& args) {
  Workspace workspace = Workspace::Counting();
  for (const TensorView* list : {&args.q_lens, &args.kv_lens, &args.kv_starts}) {
    CountList(workspace, *list);
  }
  return workspace.bytes_used();
}

absl::Status Run(const KernelContext& context, const MaskArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  MaskParams params = {};
  params.rule = args.rule;
  params.extends = args.previous.has_value();
  if (args.previous) params.previous = *args.previous;
  params.out = args.out.rank() == 4 ? ToDeviceTensor(args.out) : ToDeviceRows(args.out);
  params.first_row = args.first_row;
  TANDEM_ASSIGN_OR_RETURN(params.q_lens, StageList(context, args.q_lens));
  TANDEM_ASSIGN_OR_RETURN(params.kv_lens, StageList(context, args.kv_lens));
  TANDEM_ASSIGN_OR_RETURN(params.kv_starts, StageList(context, args.kv_starts));
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(args.batch() * args.num_rows(), 65535);
  config.block.x = 256;
  return stream.Launch(MaskFunction(stream), config, params);
}

constexpr std::array<Kernel<MaskArgs>, 1> kKernels = {
    {{"generic", DeviceKind::kCuda, SupportsAll<MaskArgs>, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<MaskArgs> Kernels<MaskArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
