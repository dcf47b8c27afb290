// The decode kernels on tensor cores: a block from its keys to its result. The warps' work is in
// attention_decode_mma.h.
#pragma once

#include "cuda/kernels/attention_decode_fresh.h"
#include "cuda/kernels/attention_decode_mma.h"
#include "cuda/kernels/attention_decode_queries.h"
#include "cuda/kernels/attention_decode_ring.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

template <typename Stored, int kGroups, int kValueTiles, typename Scores>
__device__ __forceinline__ void DecodeAttention(const DecodeParams& p) {
  SharedCarver carver;
  const DecodeShared shared =
      CarveDecode(carver, p.layout, kGroups > 1 || kValueTiles > 8 ? kDecodeMaxColumns : 8);
  const DecodeBlock block = DecodeBlockOf(p, blockIdx.x);
  if (p.attention.packed && block.split == 0 && block.s.batch == 0) EmptyRowsOfNoSequence(p, block);
  if (block.idle) return;
  const int columns = block.tokens * static_cast<int>(p.attention.group.value());
  auto* values = reinterpret_cast<float*>(shared.ring);
  for (int pass = block.first_pass; pass * p.layout.columns < columns; pass += p.pass_blocks) {
    const int first = pass * p.layout.columns;
    if (pass >= p.pass_blocks) SyncThreads();  // everybody is done with the one before
    if (block.split == p.splits) {
      LoadQueries<DecodeOperand<Stored>, false>(p, block, shared, first);
      AttendFreshColumns<Scores>(p, block, shared, first);
    } else {
      DecodeRing<Stored> ring(p, block, shared);
      LoadQueries<DecodeOperand<Stored>, std::is_same_v<Stored, int8_t>>(p, block, shared, first);
      SyncThreads();
      FillColumns<Scores>(p, block, shared, first);
      DecodeWarp<Stored, kGroups, kValueTiles, Scores> warp(p, shared);
      warp.Run(block, ring);
      ring.Finish();
      warp.Merge(values);
      KeepResult<Scores>(p, block, shared, values, first, 0, p.layout.columns);
    }
    FinishPass<Scores>(p, block, shared, pass, first);
  }
}

// One group of 8 columns per warp; more than 8 columns are two groups, in blocks of up to 256
// threads, or, where the values of two groups would not fit in the registers (`wide`), one group in
// twice as many warps. These have the scores of all variants: less common calls are not worth
// another instantiation, and what the scores cost is hidden behind memory.
template <typename Stored, int kGroups, int kValueTiles, typename Scores>
__global__ void __launch_bounds__(kGroups > 1 || kValueTiles > 8 ? 256 : 128,
                                  kGroups > 1 || kValueTiles > 8 ? 1 : 3)
    DecodeMmaKernel(const DecodeParams p) {
  DecodeAttention<Stored, kGroups, kValueTiles, Scores>(p);
}

template <typename Stored>
KernelFunction DecodeMmaFunction(const char* name, bool many_columns, bool wide, bool variants) {
  if (wide) return MakeKernelFunction<&DecodeMmaKernel<Stored, 1, 16, VariantScores>>(name);
  if (many_columns) return MakeKernelFunction<&DecodeMmaKernel<Stored, 2, 8, VariantScores>>(name);
  return variants ? MakeKernelFunction<&DecodeMmaKernel<Stored, 1, 8, VariantScores>>(name)
                  : MakeKernelFunction<&DecodeMmaKernel<Stored, 1, 8, PlainScores>>(name);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
