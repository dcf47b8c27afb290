// Attention of few queries over a long cache (decoding); see core/ops/attention.h. The kernels:
// attention_decode_mma.h, attention_decode_fma.h; the host side: attention_decode.cc.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "cuda/kernel_function.h"
#include "cuda/kernels/attention_decode_plan.h"
#include "cuda/kernels/attention_params.h"

// Declared only: kernels do not need them, and are not compiled again when they change.
namespace tandem {
struct AttentionArgs;
struct KernelContext;
}  // namespace tandem

namespace tandem::cuda {

// A column is a row of q that shares a key/value head with the others: token * group + head within
// the group. 8 columns are the small dimension of a matrix instruction.
inline constexpr int kDecodeMaxRows = 64;      // columns of a key/value head
inline constexpr int kDecodeMaxColumns = 32;   // of a block
inline constexpr int kDecodeKeyWarps = 4;      // share the keys of a tile: 16 each
inline constexpr int kDecodeMaxHeadDim = 256;  // of q and k, and of v
inline constexpr int kDecodeFreshTile = 16;    // keys of k_new at a time
inline constexpr int kDecodeFmaColumns = 8;    // of k_new at a time
inline constexpr int kDecodeRowBytes = 32;     // of what scores keep per column

// Where things lie in shared memory, in bytes. Rows are an odd number of 16 bytes apart, so that
// the eight rows that a matrix load reads at a time lie in different banks.
struct DecodeLayout {
  int32_t columns;                                 // of a block, a multiple of 8
  int32_t k_stride, v_stride, k_chunks, v_chunks;  // of a row of a tile; 16-byte pieces in it
  int32_t slot_bytes;     // of the ring: a tile of k or v, the scales of its rows, their flags
  int32_t slots;          // 2..4
  int32_t q_stride;       // of a column's copy of q
  int32_t q_bytes;        // all copies
  int32_t result_stride;  // in floats, of a column of the result
  int32_t ring_bytes;     // the ring; afterwards, and for new keys, what the parts are merged in
};

struct DecodeParams {
  AttentionParams attention;
  DecodeLayout layout;
  float* partial_values;  // [row of q][part][values rounded up to 4]
  float* partial_states;  // [row of q][part][maximum, sum]
  uint32_t* counters;     // [sequence][head][pass]: parts that have arrived, 0 before and after
  int32_t splits;         // of the cache; with new keys their part comes behind
  int32_t fixed_tiles;    // see DecodePlan
  int32_t passes;         // over groups of columns, where a block has not room for all of them
  int32_t pass_blocks;    // passes that have blocks of their own: all, or of packed queries one
  int32_t q_terms;        // 16-bit numbers that a number of q is the sum of: 1 or 2
  bool q_scaled;          // by a power of two per row, so that it stays within f16
  bool q_vectors;         // rows of q can be read 16 bytes at a time
  bool fresh;             // k_new is given
};

// 16-bit and int8 caches, on tensor cores; see attention_decode_mma.h. `wide`: values of more than
// 128 elements. `many_columns`: more than 8. Both have VariantScores only.
TANDEM_KERNEL_FUNCTION(DecodeF16Function, bool many_columns, bool wide, bool variants)
TANDEM_KERNEL_FUNCTION(DecodeBF16Function, bool many_columns, bool wide, bool variants)
TANDEM_KERNEL_FUNCTION(DecodeI8Function, bool many_columns, bool wide, bool variants)
// f32 caches; see attention_decode_fma.h. `many_columns`: more than 8, up to 32.
TANDEM_KERNEL_FUNCTION(DecodeF32Function, bool many_columns, bool variants)

// What a block keeps in shared memory; Carver is SharedCarver or SharedBytes.
struct DecodeShared {
  char* rows;      // [columns] of the scores' Row
  int32_t* begin;  // [columns] visible keys
  int32_t* end;
  float* q_factor;  // [columns] what products with the copy of q must be multiplied with
  float* max;       // [columns] of the result
  float* sum;
  float* warp_max;  // [key warps][columns]
  float* warp_sum;
  uint32_t* ticket;
  char* q;
  char* ring;
};
// `columns`: at least layout.columns, known to the compiler: offsets are then constants.
template <typename Carver>
TANDEM_HOST_DEVICE inline DecodeShared CarveDecode(Carver& carver, const DecodeLayout& layout,
                                                   int64_t columns) {
  DecodeShared shared;
  shared.rows = carver.template Take<char>(columns * kDecodeRowBytes);
  shared.begin = carver.template Take<int32_t>(columns);
  shared.end = carver.template Take<int32_t>(columns);
  shared.q_factor = carver.template Take<float>(columns);
  shared.max = carver.template Take<float>(columns);
  shared.sum = carver.template Take<float>(columns);
  shared.warp_max = carver.template Take<float>(kDecodeKeyWarps * columns);
  shared.warp_sum = carver.template Take<float>(kDecodeKeyWarps * columns);
  shared.ticket = carver.template Take<uint32_t>(1);
  shared.q = carver.template Take<char>(layout.q_bytes, 128);
  shared.ring = carver.template Take<char>(layout.ring_bytes, 128);
  return shared;
}

// The host side. `plan`: nullptr for that of PlanDecode.
absl::Status SupportsDecode(const KernelContext& context, const AttentionArgs& args);
int64_t DecodeWorkspaceBytes(const KernelContext& context, const AttentionArgs& args,
                             const DecodePlan* plan = nullptr);
absl::Status RunDecode(const KernelContext& context, const AttentionArgs& args,
                       const DecodePlan* plan = nullptr);
// That PlanDecode makes for a call that SupportsDecode accepts.
DecodePlan PlanOfDecode(const KernelContext& context, const AttentionArgs& args);

}  // namespace tandem::cuda
