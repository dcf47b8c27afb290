#include "cuda/kernels/kv_append.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/device_list.h"
#include "cuda/kernels/rotation.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

int64_t WorkspaceBytes(const KernelContext&, const KvAppendArgs& args) {
  Workspace workspace = Workspace::Counting();
  CountList(workspace, args.cache_lens);
  CountList(workspace, args.page_table);
  return workspace.bytes_used();
}

absl::Status Run(const KernelContext& context, const KvAppendArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
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

constexpr std::array<Kernel<KvAppendArgs>, 1> kKernels = {
    {{"generic", DeviceKind::kCuda, SupportsAll<KvAppendArgs>, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<KvAppendArgs> Kernels<KvAppendArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
