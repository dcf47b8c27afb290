#include "cuda/kernels/attention_prefill_host.h"

#include <algorithm>
#include <cstdint>

#include "core/status.h"
#include "cuda/kernels/attention_setup.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Key positions and rows of a sequence are 32-bit numbers in the kernels.
constexpr int64_t kMostRows = int64_t{1} << 30;

// Row tiles of one sequence and key/value head; of a packed batch those of all its sequences, each
// of which may leave one tile partly empty.
int64_t TilesOf(const AttentionArgs& args, int rows) {
  const int64_t tiles = (args.q_len() * args.group() + rows - 1) / rows;
  return args.q_offsets.present() ? tiles + args.batch() : tiles;
}
// A packed batch has one more per head: see ClearUncovered.
int64_t BlocksOf(const AttentionArgs& args, int rows) {
  const int64_t tiles = TilesOf(args, rows);
  return (args.q_offsets.present() ? tiles + 1 : tiles * args.batch()) * args.kv_heads();
}

bool InVectors(const TensorView& view) { return !view.present() || HasVectorRows(view); }

}  // namespace

int PrefillDimOf(const AttentionArgs& args) {
  const int64_t dim = std::max(args.head_dim(), args.v_head_dim());
  for (const int have : kPrefillDims) {
    if (dim <= have) return have;
  }
  return 0;
}

absl::Status CheckPrefillSize(const KernelContext& context, const AttentionArgs& args, int rows,
                              int64_t shared_bytes) {
  if (PrefillDimOf(args) == 0) {
    return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(),
                         " exceed 256");
  }
  if (SequenceKeys(args) >= kMostRows || args.q_len() * args.group() >= kMostRows) {
    return Unimplemented("sequences of 2^30 rows or more");
  }
  if (BlocksOf(args, rows) > INT32_MAX) {
    return Unimplemented(BlocksOf(args, rows), " blocks are more than a grid has");
  }
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  if (shared_bytes <= have) return absl::OkStatus();
  return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(), " need ",
                       shared_bytes, " bytes of shared memory, the device has ", have);
}

absl::StatusOr<AttentionPrefillParams> MakePrefillParams(const KernelContext& context,
                                                         const AttentionArgs& args, DType type,
                                                         int rows) {
  AttentionPrefillParams params = {};
  TANDEM_ASSIGN_OR_RETURN(params.a, MakeAttentionParams(context, args));
  params.copy_q = args.q.dtype == type && InVectors(args.q);
  params.copy_k = args.k.dtype == type && InVectors(args.k);
  params.copy_v = args.v.dtype == type && InVectors(args.v);
  if (args.k_new.present()) {
    params.copy_k_new = args.k_new.dtype == type && InVectors(args.k_new);
    params.copy_v_new = args.v_new.dtype == type && InVectors(args.v_new);
  }
  params.vector_q = InVectors(args.q);
  params.vector_k = InVectors(args.k);
  params.vector_v = InVectors(args.v);
  params.vector_out = InVectors(args.out);
  params.group = static_cast<int32_t>(args.group());
  params.kv_heads = Divisor(args.kv_heads());
  params.sequences = Divisor(args.batch());
  params.tiles = TilesOf(args, rows);
  return params;
}

LaunchConfig PrefillConfig(const AttentionArgs& args, int rows, int64_t shared_bytes) {
  LaunchConfig config;
  config.grid.x = BlocksOf(args, rows);
  config.block.x = kPrefillThreads;
  config.shared_bytes = shared_bytes;
  return config;
}

}  // namespace tandem::cuda
