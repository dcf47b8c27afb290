#include "cuda/kernels/attention_decode.h"

#include <algorithm>

#include "core/kernel.h"
#include "core/ops/attention.h"
#include "core/status.h"
#include "core/workspace.h"
#include "cuda/kernels/attention_setup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Blocks that the plan expects a multiprocessor to hold.
constexpr int64_t kBlocksPerMultiprocessor = 2;
// What the system takes of a multiprocessor's shared memory per block.
constexpr int64_t kReservedSharedBytes = 1 << 10;
constexpr int64_t kMaxKeys = int64_t{1} << 30;  // positions have 32 bits in the kernels

int64_t RoundUp(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Bytes of a row in shared memory: an odd number of 16.
int32_t OddStride(int64_t bytes) {
  const int64_t chunks = (bytes + 15) / 16;
  return static_cast<int32_t>((chunks | 1) * 16);
}

// Rows of q per key/value head that a sequence has: of packed queries, on average.
int64_t ColumnsOf(const AttentionArgs& args) {
  int64_t tokens = args.q_len();
  if (args.q_offsets.present() && args.batch() > 0) {
    tokens = (tokens + args.batch() - 1) / args.batch();
  }
  return tokens * args.group();
}

int64_t MaxColumns(const AttentionArgs& args) {
  const bool floats = args.k.dtype == DType::kF32;
  return args.v_head_dim() > 128 && !floats ? kDecodeMaxColumns / 2 : kDecodeMaxColumns;
}

struct DecodeShape {
  DecodeLayout layout;
  bool many_columns, wide, variants;
  int column_warps;  // side by side
  int64_t shared_bytes;
  int64_t blocks_per_multiprocessor;
};

int QueryTerms(const AttentionArgs& args) {
  const DType operand = args.k.dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
  return args.q.dtype == operand ? 1 : 2;
}

DecodeShape ShapeOf(const KernelContext& context, const AttentionArgs& args) {
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  int64_t columns = std::max<int64_t>(std::min(ColumnsOf(args), MaxColumns(args)), 1);
  // The two kinds of kernel round differently, and how many columns there are depends on the
  // longest sequence: batch-invariant calls take the same for all.
  if (args.batch_invariant) columns = std::max<int64_t>(columns, 9);
  const bool scaled = args.k.dtype == DType::kI8, floats = args.k.dtype == DType::kF32;
  const int64_t element = BlockBytes(args.k.dtype);
  DecodeShape shape = {};
  shape.many_columns = columns > 8;
  shape.wide = args.v_head_dim() > 128;
  shape.variants = shape.many_columns || (shape.wide && !floats) || !HasPlainScores(args);
  const int64_t of_warp = floats ? (shape.many_columns ? kDecodeMaxColumns : 8)
                          : shape.many_columns && !shape.wide ? 16
                                                              : 8;
  shape.column_warps = static_cast<int>((columns + of_warp - 1) / of_warp);
  DecodeLayout& layout = shape.layout;
  layout.columns = static_cast<int32_t>(of_warp * shape.column_warps);
  // Multiples of what an instruction takes: 16 elements of k; of int8 values 32.
  const int64_t k_bytes = RoundUp(args.head_dim(), 16) * element;
  const int64_t v_width = RoundUp(args.v_head_dim(), scaled ? 32 : 16);
  layout.k_chunks = static_cast<int32_t>(k_bytes / 16);
  layout.v_chunks = static_cast<int32_t>(v_width * element / 16);
  layout.k_stride = OddStride(k_bytes);
  layout.v_stride = OddStride(v_width * element);
  layout.slot_bytes = static_cast<int32_t>(
      kDecodeTile * std::max(layout.k_stride, layout.v_stride) + kDecodeTile * 5);
  if (floats) {  // and behind the queries the weights of a tile
    layout.q_stride = OddStride(k_bytes);
    layout.q_bytes = layout.columns * (layout.q_stride + 4) +
                     static_cast<int32_t>(kDecodeTile) * (layout.columns + 4) * 4;
  } else {
    layout.q_stride = OddStride(RoundUp(args.head_dim(), 16) * 2);
    layout.q_bytes = QueryTerms(args) * layout.columns * layout.q_stride;
  }
  // A lane's 2 columns are then 8 banks apart.
  layout.result_stride = static_cast<int32_t>(v_width + 4);
  const auto with_slots = [&](int64_t slots) {
    layout.slots = static_cast<int32_t>(slots);
    layout.ring_bytes = static_cast<int32_t>(std::max<int64_t>(
        {slots * layout.slot_bytes, 2 * int64_t{layout.columns} * layout.result_stride * 4,
         kDecodeFmaColumns * (layout.result_stride + kDecodeFreshTile + 1) * int64_t{4}}));
    SharedBytes shared;
    CarveDecode(shared, layout,
                shape.many_columns || (shape.wide && !floats) ? kDecodeMaxColumns : 8);
    shape.shared_bytes = shared.total();
    return shape.shared_bytes;
  };
  // Four slots, or three, if two blocks then fit; else what one block can have.
  shape.blocks_per_multiprocessor = kBlocksPerMultiprocessor;
  const int64_t half = (have + kReservedSharedBytes) / 2 - kReservedSharedBytes;
  for (const int64_t slots : {4, 3}) {
    if (with_slots(slots) <= half) return shape;
  }
  shape.blocks_per_multiprocessor = 1;
  for (const int64_t slots : {4, 3, 2}) {
    if (with_slots(slots) <= have) break;
  }
  return shape;
}

struct Layout {  // of the workspace
  float* values = nullptr;
  float* states = nullptr;
  uint32_t* counters = nullptr;
  int64_t counter_count = 0;
};

int64_t PassesOf(const AttentionArgs& args, const DecodeLayout& layout) {
  return std::max<int64_t>((args.q_len() * args.group() + layout.columns - 1) / layout.columns, 1);
}
// Blocks beside each other that share the passes of a split. A packed batch has as many passes as
// if all its queries were one sequence's; most do not exist, so one block goes over those that do.
int64_t PassBlocksOf(const AttentionArgs& args, const DecodeLayout& layout) {
  return args.q_offsets.present() ? 1 : PassesOf(args, layout);
}

Layout TakeLayout(Workspace& workspace, const AttentionArgs& args, const DecodePlan& plan,
                  const DecodeLayout& decode) {
  Layout layout;
  const int64_t parts = plan.splits + (args.new_len() > 0 ? 1 : 0);
  if (parts == 1) return layout;
  const int64_t rows = args.q.dim(0) * args.q.dim(1) * args.q.dim(2);
  layout.values = workspace.Take<float>(rows * parts * RoundUp(args.v_head_dim(), 4));
  layout.states = workspace.Take<float>(rows * parts * 2);
  layout.counter_count = args.batch() * args.kv_heads() * PassesOf(args, decode);
  layout.counters = workspace.Take<uint32_t>(layout.counter_count);
  return layout;
}

KernelFunction FunctionOf(const CudaStream& stream, const AttentionArgs& args,
                          const DecodeShape& shape) {
  if (args.k.dtype == DType::kF32) {
    return DecodeF32Function(stream, shape.many_columns, shape.variants);
  }
  if (args.k.dtype == DType::kI8) {
    return DecodeI8Function(stream, shape.many_columns, shape.wide, shape.variants);
  }
  if (args.k.dtype == DType::kBF16) {
    return DecodeBF16Function(stream, shape.many_columns, shape.wide, shape.variants);
  }
  return DecodeF16Function(stream, shape.many_columns, shape.wide, shape.variants);
}

bool QueriesAreVectors(const AttentionArgs& args) {
  return args.head_dim() % kVectorElements == 0 && HasVectorRows(args.q);
}

}  // namespace

DecodePlan PlanOfDecode(const KernelContext& context, const AttentionArgs& args) {
  DecodePlanInput in;
  in.capacity = args.cache_len();
  in.sequences = args.batch();
  const DecodeShape shape = ShapeOf(context, args);
  in.kv_heads = args.kv_heads() * PassBlocksOf(args, shape.layout);
  in.multiprocessors = CudaStream::Of(context).info().multiprocessors;
  in.blocks_per_multiprocessor = shape.blocks_per_multiprocessor;
  in.batch_invariant = args.batch_invariant;
  return PlanDecode(in);
}

absl::Status SupportsDecode(const KernelContext& context, const AttentionArgs& args) {
  if (args.head_dim() > kDecodeMaxHeadDim || args.v_head_dim() > kDecodeMaxHeadDim) {
    return Unimplemented("needs head dimensions <= ", kDecodeMaxHeadDim, ", got ", args.head_dim(),
                         " and ", args.v_head_dim());
  }
  if (args.batch_invariant && args.q_offsets.present()) {
    return Unimplemented(
        "batch_invariant: whether packed queries are few depends on the other sequences");
  }
  if (ColumnsOf(args) > kDecodeMaxRows) {
    return Unimplemented("needs <= ", kDecodeMaxRows, " query rows per key/value head, got ",
                         ColumnsOf(args));
  }
  if (SequenceKeys(args) > kMaxKeys) {
    return Unimplemented("needs <= 2^30 keys, got ", SequenceKeys(args));
  }
  // Blocks are numbered by 32 bits. In batch-invariant calls the capacity alone says how many
  // splits there are.
  const int64_t splits =
      args.batch_invariant
          ? PlanDecode({.capacity = args.cache_len(), .batch_invariant = true}).splits
          : kDecodeMaxSplits;
  const int64_t most = INT32_MAX / ((splits + 1) * kDecodeMaxRows / 8);
  if (args.batch() * args.kv_heads() > most) {
    return Unimplemented("needs sequences * key/value heads <= ", most, ", got ",
                         args.batch() * args.kv_heads());
  }
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("v", args.v));
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  const int64_t need = ShapeOf(context, args).shared_bytes;
  if (need <= have) return absl::OkStatus();
  return Unimplemented("head dimensions ", args.head_dim(), " and ", args.v_head_dim(), " need ",
                       need, " bytes of shared memory, the device has ", have);
}

int64_t DecodeWorkspaceBytes(const KernelContext& context, const AttentionArgs& args,
                             const DecodePlan* plan) {
  Workspace workspace = Workspace::Counting();
  CountAttentionLists(workspace, args);
  TakeLayout(workspace, args, plan != nullptr ? *plan : PlanOfDecode(context, args),
             ShapeOf(context, args).layout);
  return workspace.bytes_used();
}

absl::Status RunDecode(const KernelContext& context, const AttentionArgs& args,
                       const DecodePlan* plan) {
  if (args.out.empty() && args.q.empty()) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  const DecodeShape shape = ShapeOf(context, args);
  const DecodePlan chosen = plan != nullptr ? *plan : PlanOfDecode(context, args);
  DecodeParams params = {};
  TANDEM_ASSIGN_OR_RETURN(params.attention, MakeAttentionParams(context, args));
  const Layout layout = TakeLayout(*context.workspace, args, chosen, shape.layout);
  if (!context.workspace->ok()) return absl::InternalError("workspace too small for the parts");
  params.layout = shape.layout;
  params.partial_values = layout.values;
  params.partial_states = layout.states;
  params.counters = layout.counters;
  params.splits = static_cast<int32_t>(chosen.splits);
  params.fixed_tiles = static_cast<int32_t>(chosen.fixed_tiles);
  params.passes = static_cast<int32_t>(PassesOf(args, shape.layout));
  params.pass_blocks = static_cast<int32_t>(PassBlocksOf(args, shape.layout));
  params.q_terms = QueryTerms(args);
  params.q_scaled = params.q_terms > 1 && args.k.dtype != DType::kBF16;
  params.q_vectors = QueriesAreVectors(args);
  params.fresh = args.new_len() > 0;
  if (layout.counter_count > 0) {
    TANDEM_RETURN_IF_ERROR(stream.runtime().Fill(stream.handle(), layout.counters, 0,
                                                 layout.counter_count * int64_t{4}));
  }
  LaunchConfig config;
  config.grid.x = args.batch() * args.kv_heads() * (chosen.splits + (params.fresh ? 1 : 0)) *
                  params.pass_blocks;
  config.block.x = int64_t{32} * kDecodeKeyWarps * shape.column_warps;
  config.shared_bytes = shape.shared_bytes;
  return stream.Launch(FunctionOf(stream, args, shape), config, params);
}

}  // namespace tandem::cuda
