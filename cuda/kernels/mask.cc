#include "cuda/kernels/mask.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/device_list.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/kernels/vector_rows.h"
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

absl::StatusOr<MaskParams> ToParams(const KernelContext& context, const MaskArgs& args) {
  MaskParams params = {};
  params.rule = args.rule;
  params.extends = args.previous.has_value();
  if (args.previous) params.previous = *args.previous;
  params.out = args.out.rank() == 4 ? ToDeviceTensor(args.out) : ToDeviceRows(args.out);
  params.first_row = args.first_row;
  TANDEM_ASSIGN_OR_RETURN(params.q_lens, StageList(context, args.q_lens));
  TANDEM_ASSIGN_OR_RETURN(params.kv_lens, StageList(context, args.kv_lens));
  TANDEM_ASSIGN_OR_RETURN(params.kv_starts, StageList(context, args.kv_starts));
  return params;
}

absl::Status Run(const KernelContext& context, const MaskArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_ASSIGN_OR_RETURN(const MaskParams params, ToParams(context, args));
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(args.batch() * args.num_rows(), 65535);
  config.block.x = 256;
  return stream.Launch(MaskFunction(stream), config, params);
}

absl::Status VectorSupports(const KernelContext&, const MaskArgs& args) {
  if (args.previous) return Unimplemented("does not extend a mask in place");
  return CheckVectorRows("out", args.out);
}

absl::Status RunVector(const KernelContext& context, const MaskArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  MaskVectorParams params = {};
  TANDEM_ASSIGN_OR_RETURN(params.mask, ToParams(context, args));
  const int64_t row_bytes = args.out.dim(-1) * BlockBytes(args.out.dtype);
  constexpr int64_t kPieceBytes = int64_t{kMaskPieceStores} * kVectorBytes;
  const int64_t pieces = std::max<int64_t>((row_bytes + kPieceBytes - 1) / kPieceBytes, 1);
  params.rows = Divisor(args.num_rows());
  params.pieces = Divisor(pieces);
  constexpr int64_t kWarps = kVectorThreads / 32;
  LaunchConfig config;
  config.grid.x = std::min<int64_t>((args.batch() * args.num_rows() * pieces + kWarps - 1) / kWarps,
                                    int64_t{1} << 20);
  config.block.x = kVectorThreads;
  return stream.Launch(MaskVectorFunction(stream), config, params);
}

constexpr std::array<Kernel<MaskArgs>, 2> kKernels = {
    {{"vector", DeviceKind::kCuda, VectorSupports, WorkspaceBytes, RunVector},
     {"generic", DeviceKind::kCuda, SupportsAll<MaskArgs>, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<MaskArgs> Kernels<MaskArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
