#include "cuda/kernels/attention.h"

#include <algorithm>

#include "core/ops/attention.h"
#include "core/status.h"
#include "cuda/kernels/attention_kernels.h"
#include "cuda/kernels/attention_setup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

int64_t SharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarveAttention(shared, args.head_dim(), args.v_head_dim());
  return shared.total();
}

}  // namespace

absl::Status GenericAttentionSupports(const KernelContext& context, const AttentionArgs& args) {
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  if (SharedBytesOf(args) <= have) return absl::OkStatus();
  return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(), " need ",
                       SharedBytesOf(args), " bytes of shared memory, the device has ", have);
}

absl::Status RunGenericAttention(const KernelContext& context, const AttentionArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_ASSIGN_OR_RETURN(const AttentionParams params, MakeAttentionParams(context, args));
  LaunchConfig config;
  config.grid.x =
      std::min<int64_t>(args.q.dim(0) * args.q.dim(1) * args.q.dim(2), int64_t{1} << 20);
  config.block.x = kAttentionThreads;
  config.shared_bytes = SharedBytesOf(args);
  return stream.Launch(AttentionFunction(stream), config, params);
}

}  // namespace tandem::cuda
