#include "cuda/kernels/attention.h"

#include <algorithm>
#include <array>

#include "core/ops/attention.h"
#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/device_list.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

int64_t SharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarveAttention(shared, args.head_dim(), args.v_head_dim());
  return shared.total();
}

absl::Status Supports(const KernelContext& context, const AttentionArgs& args) {
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  if (SharedBytesOf(args) <= have) return absl::OkStatus();
  return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(), " need ",
                       SharedBytesOf(args), " bytes of shared memory, the device has ", have);
}

int64_t WorkspaceBytes(const KernelContext&, const AttentionArgs& args) {
  Workspace workspace = Workspace::Counting();
  for (const TensorView* list :
       {&args.q_lens, &args.q_offsets, &args.kv_lens, &args.kv_starts, &args.page_table}) {
    CountList(workspace, *list);
  }
  return workspace.bytes_used();
}

absl::Status Run(const KernelContext& context, const AttentionArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  AttentionParams params = {};
  params.q = ToDeviceTensor(args.q);
  params.k = ToDeviceTensor(args.k);
  params.v = ToDeviceTensor(args.v);
  params.k_new = ToDeviceTensor(args.k_new);
  params.v_new = ToDeviceTensor(args.v_new);
  params.out = ToDeviceTensor(args.out);
  params.lse = ToDeviceTensor(args.lse);
  params.alibi_slopes = ToDeviceTensor(args.alibi_slopes);
  params.bias = ToBroadcastTensor(args.bias);
  params.mask = ToBroadcastTensor(args.mask);
  params.sinks = ToDeviceTensor(args.sinks);
  params.k_scale = ToDeviceTensor(args.k_scale);
  params.v_scale = ToDeviceTensor(args.v_scale);
  params.scale = args.Scale();
  params.softcap = args.softcap;
  if (args.softcap > 0.0f) params.inverse_softcap = 1.0f / args.softcap;
  params.rule = args.Rule();
  params.sequences = args.batch();
  params.cache_len = args.cache_len();
  params.new_len = args.new_len();
  params.rows = Divisor(args.q.dim(2));
  params.heads = Divisor(args.q.dim(1));
  params.group = Divisor(args.group());
  params.packed = args.q_offsets.present();
  TANDEM_ASSIGN_OR_RETURN(params.q_lens, StageList(context, args.q_lens));
  TANDEM_ASSIGN_OR_RETURN(params.q_offsets, StageList(context, args.q_offsets));
  TANDEM_ASSIGN_OR_RETURN(params.kv_lens, StageList(context, args.kv_lens));
  TANDEM_ASSIGN_OR_RETURN(params.kv_starts, StageList(context, args.kv_starts));
  TANDEM_ASSIGN_OR_RETURN(params.page_table, StageTable(context, args.page_table));
  params.paged = args.paged();
  if (args.paged()) params.page_size = Divisor(args.page_size());
  LaunchConfig config;
  config.grid.x =
      std::min<int64_t>(args.q.dim(0) * args.q.dim(1) * args.q.dim(2), int64_t{1} << 20);
  config.block.x = kAttentionThreads;
  config.shared_bytes = SharedBytesOf(args);
  return stream.Launch(AttentionFunction(stream), config, params);
}

constexpr std::array<Kernel<AttentionArgs>, 1> kKernels = {
    {{"generic", DeviceKind::kCuda, Supports, WorkspaceBytes, Run}}};

}  // namespace

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>() {
  return kKernels;
}

}  // namespace tandem::cuda
