#include "cuda/kernels/attention_prefill.h"

#include <algorithm>
#include <cstdint>

#include "core/ops/attention.h"
#include "core/status.h"
#include "cuda/kernels/attention_kernels.h"
#include "cuda/kernels/attention_setup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Key positions and rows of a sequence are 32-bit numbers in the kernel.
constexpr int64_t kMostRows = int64_t{1} << 30;

bool Is16Bit(DType dtype) { return dtype == DType::kF16 || dtype == DType::kBF16; }

// The type of the products: that of the keys; an int8 cache is expanded to the type of q.
DType TypeOf(const AttentionArgs& args) {
  return args.k.dtype == DType::kI8 ? args.q.dtype : args.k.dtype;
}

// The smallest kernel that has room for both head sizes; 0: none.
int DimOf(const AttentionArgs& args) {
  const int64_t dim = std::max(args.head_dim(), args.v_head_dim());
  for (const int have : kPrefillDims) {
    if (dim <= have) return have;
  }
  return 0;
}

PrefillShape ShapeOf(const AttentionArgs& args) {
  return PrefillShapeOf(DimOf(args), !HasPlainScores(args));
}

int64_t SharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarvePrefill(shared, ShapeOf(args));
  return shared.total();
}

// Row tiles of one sequence and key/value head; of a packed batch those of all its sequences, each
// of which may leave one tile partly empty.
int64_t TilesOf(const AttentionArgs& args) {
  const int64_t rows = ShapeOf(args).rows();
  const int64_t tiles = (args.q_len() * args.group() + rows - 1) / rows;
  return args.q_offsets.present() ? tiles + args.batch() : tiles;
}
// A packed batch has one more per head: see ClearUncovered.
int64_t BlocksOf(const AttentionArgs& args) {
  const int64_t tiles = TilesOf(args);
  return (args.q_offsets.present() ? tiles + 1 : tiles * args.batch()) * args.kv_heads();
}

// Can rows be read and written in vectors of 16 bytes?
bool InVectors(const TensorView& view) {
  if (!view.present()) return true;
  const int64_t elements = kVectorBytes / BlockBytes(view.dtype);
  if (reinterpret_cast<uintptr_t>(view.data) % kVectorBytes != 0) return false;
  if (view.dim(3) > 1 && view.stride(3) != 1) return false;
  for (int i = 0; i < 3; ++i) {
    if (view.dim(i) > 1 && view.stride(i) % elements != 0) return false;
  }
  return true;
}

KernelFunction FunctionOf(const CudaStream& stream, const AttentionArgs& args) {
  const bool variants = !HasPlainScores(args);
  switch (DimOf(args)) {
    case 64:
      return AttentionPrefill64Function(stream, TypeOf(args), variants);
    case 128:
      return AttentionPrefill128Function(stream, TypeOf(args), variants);
    default:
      return AttentionPrefill256Function(stream, TypeOf(args), variants);
  }
}

}  // namespace

absl::Status PrefillAttentionSupports(const KernelContext& context, const AttentionArgs& args) {
  if (args.k.dtype == DType::kF32) {
    return Unimplemented("keys are f32, this kernel multiplies 16-bit numbers");
  }
  if (!Is16Bit(TypeOf(args))) {
    return Unimplemented("keys are i8 and queries f32: 16 bits would lose what i8 keeps");
  }
  if (DimOf(args) == 0) {
    return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(),
                         " exceed 256");
  }
  if (SequenceKeys(args) >= kMostRows || args.q_len() * args.group() >= kMostRows) {
    return Unimplemented("sequences of 2^30 rows or more");
  }
  if (BlocksOf(args) > INT32_MAX) {
    return Unimplemented(BlocksOf(args), " blocks are more than a grid has");
  }
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  if (SharedBytesOf(args) <= have) return absl::OkStatus();
  return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(), " need ",
                       SharedBytesOf(args), " bytes of shared memory, the device has ", have);
}

absl::Status RunPrefillAttention(const KernelContext& context, const AttentionArgs& args) {
  if (args.q.dim(0) * args.q.dim(1) * args.q.dim(2) == 0) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  AttentionPrefillParams params = {};
  TANDEM_ASSIGN_OR_RETURN(params.a, MakeAttentionParams(context, args));
  const DType type = TypeOf(args);
  params.copy_q = args.q.dtype == type && InVectors(args.q);
  params.copy_k = args.k.dtype == type && InVectors(args.k);
  params.copy_v = args.v.dtype == type && InVectors(args.v);
  if (args.k_new.present()) {
    params.copy_k_new = args.k_new.dtype == type && InVectors(args.k_new);
    params.copy_v_new = args.v_new.dtype == type && InVectors(args.v_new);
  }
  params.vector_q = InVectors(args.q);
  params.vector_out = InVectors(args.out);
  params.group = static_cast<int32_t>(args.group());
  params.kv_heads = Divisor(args.kv_heads());
  params.sequences = Divisor(args.batch());
  params.tiles = TilesOf(args);
  LaunchConfig config;
  config.grid.x = BlocksOf(args);
  config.block.x = kPrefillThreads;
  config.shared_bytes = SharedBytesOf(args);
  return stream.Launch(FunctionOf(stream, args), config, params);
}

}  // namespace tandem::cuda
