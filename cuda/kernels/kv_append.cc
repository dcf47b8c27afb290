#include "cuda/kernels/kv_append.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/device_list.h"
#include "cuda/kernels/rotation.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

int64_t WorkspaceBytes(const KernelContext&, const KvAppendArgs& args) {
  Workspace workspace = Workspace::Counting();
  CountList(workspace, args.cache_lens);
  CountList(workspace, args.page_table);
  return workspace.bytes_used();
}

absl::StatusOr<KvAppendParams> ToParams(const KernelContext& context, const KvAppendArgs& args) {
  KvAppendParams params = {};
  params.k = ToDeviceTensor(args.k);
  params.v = ToDeviceTensor(args.v);
  params.k_cache = ToDeviceTensor(args.k_cache);
  params.v_cache = ToDeviceTensor(args.v_cache);
  params.k_scale = ToDeviceTensor(args.k_scale);
  params.v_scale = ToDeviceTensor(args.v_scale);
  params.q = ToDeviceTensor(args.q);
  params.q_out = ToDeviceTensor(args.q_out);
  params.position = args.position;
  params.capacity = args.capacity();
  TANDEM_ASSIGN_OR_RETURN(params.cache_lens, StageList(context, args.cache_lens));
  TANDEM_ASSIGN_OR_RETURN(params.page_table, StageTable(context, args.page_table));
  params.heads = Divisor(args.k.dim(1));
  params.tokens = Divisor(args.k.dim(2));
  if (args.q.present()) {
    params.q_heads = Divisor(args.q.dim(1));
    params.queries = Divisor(args.q.dim(2));
  }
  params.page_size = Divisor(args.k_cache.dim(2));
  params.rotation = ToRotationParams(args.rope);
  return params;
}

absl::Status Run(const KernelContext& context, const KvAppendArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_ASSIGN_OR_RETURN(const KvAppendParams params, ToParams(context, args));
  const int64_t rows = 2 * args.k.dim(0) * args.k.dim(1) * args.k.dim(2) +
                       (args.q.present() ? args.q.dim(0) * args.q.dim(1) * args.q.dim(2) : 0);
  SharedBytes shared;
  shared.Take<float>(32);
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(rows, 65535);
  config.block.x = kKvAppendThreads;
  config.shared_bytes = shared.total();
  return stream.Launch(KvAppendFunction(stream), config, params);
}

absl::Status VectorSupports(const KernelContext&, const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckRotatedRows("k", args.rope, args.k));
  TANDEM_RETURN_IF_ERROR(CheckRotatedRows("v", {}, args.v));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("k_cache", args.k_cache));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("v_cache", args.v_cache));
  if (args.q.present()) {
    TANDEM_RETURN_IF_ERROR(CheckVectorRows("q", args.q));
    TANDEM_RETURN_IF_ERROR(CheckVectorRows("q_out", args.q_out));
  }
  if (!args.quantized()) return absl::OkStatus();
  for (const int64_t columns : {args.k.dim(3), args.v.dim(3)}) {  // shared by lanes of one warp
    const int64_t lanes = columns / kRotatedElements;
    if (lanes > 32 || (lanes & (lanes - 1)) != 0) {
      return Unimplemented("int8: needs head dimensions of 16, 32, 64, 128, 256 or 512, got ",
                           columns);
    }
  }
  return absl::OkStatus();
}

absl::Status RunVector(const KernelContext& context, const KvAppendArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_ASSIGN_OR_RETURN(const KvAppendParams params, ToParams(context, args));
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(args.k.dim(0) * args.k.dim(2), int64_t{1} << 20);
  config.block.x = kVectorThreads;
  config.shared_bytes = RotationTableBytes(args.rope);
  return stream.Launch(KvAppendVectorFunction(stream), config, params);
}

constexpr std::array<Kernel<KvAppendArgs>, 2> kKernels = {
    {{"vector", DeviceKind::kCuda, VectorSupports, WorkspaceBytes, RunVector},
     {"generic", DeviceKind::kCuda, SupportsAll<KvAppendArgs>, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<KvAppendArgs> Kernels<KvAppendArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
