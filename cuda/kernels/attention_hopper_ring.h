// The rings of keys and values of the kernel `hopper`, and the thread that fills them. Of
// attention_hopper_kernel.h.
#pragma once

#include "cuda/device/bulk_copy.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/target.h"
#include "cuda/kernels/attention_hopper_work.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace hopper {

inline constexpr int kGroup = 128;     // threads of a warpgroup
inline constexpr int kGroupRows = 64;  // of its products
inline constexpr int kRowBytes = 128;  // of a row of a block of 64 columns

// Barriers in shared memory.
struct Rings {
  Mbarrier* all;
  __device__ Mbarrier* k_full(uint32_t slot) const { return all + slot; }
  __device__ Mbarrier* k_empty(uint32_t slot) const { return all + kHopperStages + slot; }
  __device__ Mbarrier* v_full(uint32_t slot) const { return all + 2 * kHopperStages + slot; }
  __device__ Mbarrier* v_empty(uint32_t slot) const { return all + 3 * kHopperStages + slot; }
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t));
static_assert(kHopperStages == 2);
__device__ inline uint32_t SlotOf(uint32_t step) { return step & 1u; }
__device__ inline uint32_t ParityOf(uint32_t step) { return step >> 1 & 1u; }

// Named barriers; 0 is SyncThreads.
__device__ inline int OwnBarrier(int group) { return 1 + group; }
inline constexpr int kConsumersBarrier = 4;
__device__ inline int TurnBarrier(int group) { return 5 + group; }

// Byte offset, in a tile of `rows` rows, of unit `unit` (8 elements) of row `row`.
__device__ inline int UnitOffset(int rows, int row, int unit) {
  return (unit / 8 * rows + row) * kRowBytes + ((unit ^ row) & 7) * 16;
}

// --- the producer: one thread of a warpgroup
// Where piece `i` of a tile of keys lies. Outside the pool: a plane that a copy fills with zeros.
struct PiecePlace {
  int32_t plane, row;
  bool inside;
};
template <int kKeys>
__device__ inline PiecePlace PieceOf(const HopperParams& params, const HopperWork& w, int tile,
                                     int i) {
  const AttentionParams& p = params.attention;
  const int64_t key = int64_t{tile} * kKeys + i * params.piece;
  if (!p.paged) {
    return {static_cast<int32_t>(w.sequence.batch), static_cast<int32_t>(key), true};
  }
  const Divisor::Result page = p.page_size.Divide(key);
  const auto row = static_cast<int32_t>(page.remainder);
  // Entries behind the last page in use are not looked at.
  const bool used = key < w.sequence.rule.kv_len;
  const int64_t plane = used ? p.page_table.At(w.sequence.batch, page.quotient) : -1;
  if (plane >= 0 && plane < p.k.dims[0]) return {static_cast<int32_t>(plane), row, true};
  return {static_cast<int32_t>(p.k.dims[0]), row, !used};
}

template <int kDim, int kKeys>
__device__ inline void CopyTile(const HopperParams& params, const HopperWork& w, int tile,
                                const TensorMap* map, const int32_t (&steps)[2], uint16_t* to,
                                Mbarrier* full) {
  MbarrierArriveExpect(full, kDim * kKeys * 2);
#pragma unroll 1
  for (int i = 0; i * params.piece < kKeys; ++i) {
    const PiecePlace place = PieceOf<kKeys>(params, w, tile, i);
    const bool pool = place.plane < params.attention.k.dims[0];
    const int32_t plane = pool ? place.plane * steps[1] : place.plane;
#pragma unroll 1
    for (int block = 0; block < kDim / 64; ++block) {
      const int32_t at[4] = {block * 64, place.row, w.kv_head * steps[0], plane};
      TensorLoad(to + (block * kKeys + i * params.piece) * 64, map, at, full);
    }
  }
}

template <int kDim, bool kVariants>
__device__ inline void Produce(const HopperParams& params, const HopperShared& shared,
                               const Rings& rings) {
  constexpr HopperTile kTile = HopperTileOf(kDim, kVariants);
  constexpr int kKeys = kTile.keys;
  PrefetchTensorMap(&params.k);
  PrefetchTensorMap(&params.v);
  uint32_t step = 0;
#pragma unroll 1
  for (uint32_t round = 0; round * gridDim.x < params.tiles; ++round) {
    const uint32_t tile = HopperTileOfRound(round);
    if (tile >= params.tiles) continue;
    const HopperWork w = HopperWorkOf<kTile.rows(), kKeys>(params, tile);
#pragma unroll 1
    for (int n = w.end - 1; n >= w.begin; --n, ++step) {
      const uint32_t slot = SlotOf(step), before = ParityOf(step) ^ 1u;
      MbarrierWait(rings.k_empty(slot), before);
      if (params.attention.paged) {  // seen by those who wait for the copies
        uint32_t bits = 0;
        for (int i = 0; i * params.piece < kKeys; ++i) {
          bits |= static_cast<uint32_t>(PieceOf<kKeys>(params, w, n, i).inside) << i;
        }
        shared.missing[slot] = ~bits & ((1u << (kKeys / params.piece)) - 1u);
      }
      CopyTile<kDim, kKeys>(params, w, n, &params.k, params.k_steps, shared.k + slot * kKeys * kDim,
                            rings.k_full(slot));
      MbarrierWait(rings.v_empty(slot), before);
      CopyTile<kDim, kKeys>(params, w, n, &params.v, params.v_steps, shared.v + slot * kKeys * kDim,
                            rings.v_full(slot));
    }
  }
}

}  // namespace hopper
}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
