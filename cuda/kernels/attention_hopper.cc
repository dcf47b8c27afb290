#include "cuda/kernels/attention_hopper.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include "core/ops/attention.h"
#include "core/status.h"
#include "cuda/kernels/attention_hopper_host.h"
#include "cuda/kernels/attention_setup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Fewer rows are for the kernels that pack heads and split keys: a tile has 128.
constexpr int64_t kFewestQueries = 32;
// Lengths and row blocks are 32-bit numbers in the kernel.
constexpr int64_t kMostKeys = int64_t{1} << 30;
constexpr int64_t kMostTiles = int64_t{1} << 31;
// Keys and values of the heads that are worked on at the same time; the H100 and H200 have 50 MB
// of L2 cache, of which queries, outputs and the other half of the chip take their part.
constexpr int64_t kSectionBytes = int64_t{32} << 20;

bool HasVariants(const AttentionArgs& args) { return !HasPlainScores(args); }

HopperTile TileOf(const AttentionArgs& args) {
  return HopperTileOf(static_cast<int>(args.head_dim()), HasVariants(args));
}

int64_t SharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarveHopper(shared, static_cast<int>(args.head_dim()), HasVariants(args));
  return shared.total();
}

// Rows of keys that one copy fetches: a whole tile, or what a page and a tile have in common.
int64_t PieceOf(const AttentionArgs& args) {
  const int64_t keys = TileOf(args).keys;
  return args.paged() ? std::gcd(args.page_size(), keys) : keys;
}

// Row blocks of a head; of a packed batch, at most those of all sequences.
int64_t BlocksOf(const AttentionArgs& args) {
  const int64_t rows = TileOf(args).rows();
  return (args.q_len() + rows - 1) / rows + (args.q_offsets.present() ? args.batch() : 0);
}
int64_t HeadsOf(const AttentionArgs& args) { return args.q.dim(0) * args.q_heads(); }

absl::Status SupportsCache(const char* name, const TensorView& cache) {
  TANDEM_RETURN_IF_ERROR(CheckVectorRows(name, cache));
  for (int i = 0; i < 3; ++i) {
    const bool broadcast = cache.stride(i) == 0 && cache.dim(i) > 1;
    if (broadcast && i == 2) return Unimplemented(name, ": one row for all keys");
    if (cache.stride(i) >= int64_t{1} << 39) return Unimplemented(name, ": stride over 2^39");
  }
  return absl::OkStatus();
}

// `steps`: 0 for a dimension whose elements are all the same, which the map then has only once.
absl::StatusOr<TensorMap> MapOf(Runtime& runtime, const TensorView& cache, int64_t piece,
                                int32_t (&steps)[2]) {
  const int64_t bytes = BlockBytes(cache.dtype);
  TensorMapSpec spec;
  spec.data = cache.data;
  spec.dtype = cache.dtype;
  spec.rank = 4;
  spec.box = {64, static_cast<int32_t>(piece), 1, 1};
  spec.swizzle = Swizzle::k128;
  spec.extent[0] = cache.dim(3);
  for (int i = 1; i < 4; ++i) {  // rows, heads, planes
    const int from = 3 - i;
    const auto at = static_cast<size_t>(i);
    spec.extent[at] = cache.stride(from) == 0 ? 1 : cache.dim(from);
    // A stride that is never used has to be valid all the same.
    spec.stride[at] = spec.extent[at] == 1 ? cache.dim(3) * bytes : cache.stride(from) * bytes;
    if (i > 1) steps[i - 2] = spec.extent[at] == 1 ? 0 : 1;
  }
  return runtime.EncodeTensorMap(spec);
}

// As one word: both on its alignment, side by side.
bool StoresPairs(const TensorView& out) {
  const int64_t bytes = BlockBytes(out.dtype);
  if (out.stride(3) != 1 || reinterpret_cast<uintptr_t>(out.data) % (2 * bytes) != 0) return false;
  for (int i = 0; i < 3; ++i) {
    if (out.dim(i) > 1 && out.stride(i) % 2 != 0) return false;
  }
  return true;
}

KernelFunction FunctionOf(const CudaStream& stream, const AttentionArgs& args) {
  const DType dtype = args.k.dtype;
  const bool variants = HasVariants(args);
  return args.head_dim() == 64    ? AttentionHopper64Function(stream, dtype, variants)
         : args.head_dim() == 128 ? AttentionHopper128Function(stream, dtype, variants)
                                  : AttentionHopper256Function(stream, dtype, variants);
}

}  // namespace

absl::Status AttentionHopperSupports(const KernelContext& context, const AttentionArgs& args) {
  const DeviceInfo& info = CudaStream::Of(context).info();
  if (info.compute_capability_major != 9 || info.compute_capability_minor != 0) {
    return Unimplemented("for compute capability 9.0, the device has ",
                         info.compute_capability_major, ".", info.compute_capability_minor);
  }
  const int64_t d = args.head_dim();
  if ((d != 64 && d != 128 && d != 256) || args.v_head_dim() != d) {
    return Unimplemented("head dimensions ", d, " and ", args.v_head_dim(),
                         ", expected 64, 128 or 256, and the same for both");
  }
  if (args.batch_invariant && args.q_offsets.present()) {
    return Unimplemented(
        "batch_invariant: whether packed queries are many depends on the other sequences");
  }
  if (args.q_len() < kFewestQueries) {
    return Unimplemented(args.q_len(), " queries, expected at least ", kFewestQueries);
  }
  if (!Is16Bit(args.k.dtype)) {
    return Unimplemented("keys of type ", std::string(Name(args.k.dtype)),
                         ", expected f16 or bf16");
  }
  if (args.new_len() > 0) return Unimplemented("keys beside the cache");
  if (args.bias.present() || args.mask.present()) return Unimplemented("a bias or mask");
  if (args.kv_len() < 1 || SequenceKeys(args) > kMostKeys) {
    return Unimplemented(args.kv_len(), " keys of ", SequenceKeys(args), ", expected 1..",
                         kMostKeys);
  }
  if (args.paged() && PieceOf(args) % 8 != 0) {
    return Unimplemented("pages of ", args.page_size(), " keys, expected a multiple of 8");
  }
  if (HeadsOf(args) * BlocksOf(args) >= kMostTiles) return Unimplemented("2^31 tiles of queries");
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("q", args.q));
  TANDEM_RETURN_IF_ERROR(SupportsCache("k", args.k));
  TANDEM_RETURN_IF_ERROR(SupportsCache("v", args.v));
  if (SharedBytesOf(args) > info.shared_memory_per_block_bytes) {
    return Unimplemented("needs ", SharedBytesOf(args), " bytes of shared memory, the device has ",
                         info.shared_memory_per_block_bytes);
  }
  return absl::OkStatus();
}

int64_t AttentionHopperWorkspaceBytes(const KernelContext&, const AttentionArgs& args) {
  Workspace workspace = Workspace::Counting();
  CountAttentionLists(workspace, args);
  return workspace.bytes_used();
}

absl::Status RunAttentionHopper(const KernelContext& context, const AttentionArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const HopperTile tile = TileOf(args);
  HopperParams params = {};
  TANDEM_ASSIGN_OR_RETURN(params.attention, MakeAttentionParams(context, args));
  const int64_t piece = PieceOf(args);
  TANDEM_ASSIGN_OR_RETURN(params.k, MapOf(stream.runtime(), args.k, piece, params.k_steps));
  TANDEM_ASSIGN_OR_RETURN(params.v, MapOf(stream.runtime(), args.v, piece, params.v_steps));
  params.piece = static_cast<int32_t>(piece);
  params.heads = static_cast<uint32_t>(HeadsOf(args));
  params.blocks = static_cast<uint32_t>(BlocksOf(args));
  params.tiles = params.heads * params.blocks;
  const int64_t head_bytes =
      2 * args.kv_len() * args.head_dim() * BlockBytes(args.k.dtype);  // keys and values
  const int64_t section = std::max<int64_t>(1, kSectionBytes / head_bytes) * args.group();
  params.section = static_cast<uint32_t>(std::min<int64_t>(section, params.heads));
  params.out_pairs = StoresPairs(args.out);

  LaunchConfig config;
  config.grid.x = std::min<int64_t>(params.tiles, stream.info().multiprocessors);
  config.block.x = tile.threads();
  config.shared_bytes = SharedBytesOf(args);
  return stream.Launch(FunctionOf(stream, args), config, params);
}

}  // namespace tandem::cuda
