// Attention of many queries on compute capability 9.0: FlashAttention-3's pipeline (Shah et al.
// 2024), of which attention_hopper_*.cu instantiate one head dimension each.
//
// A block per multiprocessor takes tiles of 64 queries per consumer warpgroup. One thread of the
// producer warpgroup copies tiles of K and of V by TMA, the last keys first, into two rings of two
// slots; the consumers multiply them by wgmma:
//
//   S = Q K(i)            Q and K from shared memory
//   O = O + P V(i - 1)    P from registers: the layout of accumulators is that of operands
//   both under way; softmax of S as soon as it is there, while the tensor cores work on O; then
//   O is rescaled and S, rounded to the type of V, becomes P
//
// The warpgroups take turns at issuing products (named barriers), so that one computes
// exponentials while another multiplies. Keys that not every query of the tile sees are masked in
// tiles that hold such keys only. What is hidden may be NaN: there the scores are replaced, and
// values that are not finite are looked for, added to the rows that see them, and made 0 in shared
// memory before they are multiplied with the zeros of the others.
//
// Memory traffic: K and V once per tile of queries, mostly from the L2 cache (HopperWorkOf), the
// rest once. Range: see Supports in attention_hopper.cc.
#pragma once

#include <type_traits>

#include "cuda/device/convert.h"
#include "cuda/device/elements.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/warpgroup.h"
#include "cuda/kernels/attention_hopper_scores.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace hopper {

template <typename T, int kDim, bool kVariants>
struct Consumer {
  using Scores = hopper::Scores<T, HopperTileOf(kDim, kVariants).keys>;
  static constexpr HopperTile kTile = HopperTileOf(kDim, kVariants);
  static constexpr int kKeys = kTile.keys;
  static constexpr int kConsumerThreads = kGroup * kTile.consumers;
  static constexpr int kTileBytes = kKeys * kDim * 2;

  // S = Q K^T. Leaves the products uncommitted.
  __device__ static void MultiplyKeys(float (&s)[kKeys / 2], MatrixDescriptor q,
                                      MatrixDescriptor k) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const uint32_t column = static_cast<uint32_t>(i % 4 * 32);
      const auto block = static_cast<uint32_t>(i / 4 * kRowBytes);
      WarpgroupMultiply<T, kKeys>(s, Advance(q, block * kGroupRows + column),
                                  Advance(k, block * kKeys + column), i > 0);
    }
  }
  // O += P V.
  __device__ static void MultiplyValues(float (&o)[kDim / 2], const uint32_t (&p)[kKeys / 16][4],
                                        MatrixDescriptor v) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      WarpgroupMultiply<T, kDim, /*kTransposeB=*/true>(
          o, p[i], Advance(v, static_cast<uint32_t>(i * 16 * kRowBytes)), true);
    }
  }

  __device__ static void Shrink(float (&o)[kDim / 2], const float (&shrink)[2]) {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[4 * j + i] *= shrink[i / 2];
    }
  }

  // Of a tile that some query does not see all of: values that are not finite would reach its row
  // as 0 * NaN. They are added to the rows that see them, whose weight then does not matter, and
  // made 0. All consumers take part; `step` names the tile.
  __device__ static void RemoveNonFinite(uint16_t* v, const HopperShared& shared, uint32_t step,
                                         float (&o)[kDim / 2], const Rows& rows, int key,
                                         uint32_t missing, int piece) {
    const int t = static_cast<int>(threadIdx.x) - kGroup, lane = t % 32;
    auto* units = reinterpret_cast<Packed<16>*>(v);
    bool found = false;
#pragma unroll 4
    for (int i = t; i < kTileBytes / 16; i += kConsumerThreads) {
      const Packed<16> unit = LoadPacked<16>(units + i);
#pragma unroll
      for (int x = 0; x < 4; ++x) found = found || AnyNonFinite<T>(unit.words[x]);
    }
    // Nobody is two tiles ahead of another: two marks take turns.
    uint32_t* suspect = shared.suspects + SlotOf(step);
    if (found) AtomicMax<Scope::kBlock>(suspect, step + 1);
    NamedBarrierSync(kConsumersBarrier, kConsumerThreads);
    if (*suspect != step + 1) return;
#pragma unroll 1
    for (int j = 0; j < kKeys; ++j) {
      bool sees[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sees[r] = key + j >= rows.at[8 * r].first && key + j < rows.at[8 * r].last &&
                  (missing >> (j / piece) & 1u) == 0;
      }
#pragma unroll
      for (int unit = 0; unit < kDim / 8; ++unit) {
        const auto* words = reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(v) +
                                                              UnitOffset(kKeys, j, unit));
        const uint32_t word = words[lane % 4];
        if (!AnyNonFinite<T>(word)) continue;
        const FloatPair both = std::is_same_v<T, F16> ? UnpackF16(word) : UnpackBF16(word);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (sees[r] && !IsFinite(both.low)) o[4 * unit + 2 * r] += both.low;
          if (sees[r] && !IsFinite(both.high)) o[4 * unit + 2 * r + 1] += both.high;
        }
      }
    }
    NamedBarrierSync(kConsumersBarrier, kConsumerThreads);
#pragma unroll 1
    for (int i = t; i < kTileBytes / 16; i += kConsumerThreads) {
      Packed<16> unit = LoadPacked<16>(units + i);
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        if (AnyNonFinite<T>(unit.words[x] & 0x0000FFFFu)) unit.words[x] &= 0xFFFF0000u;
        if (AnyNonFinite<T>(unit.words[x] & 0xFFFF0000u)) unit.words[x] &= 0x0000FFFFu;
      }
      StorePacked(units + i, unit);
    }
    FenceProxyAsync();
    NamedBarrierSync(kConsumersBarrier, kConsumerThreads);
  }

  __device__ static void Release(Mbarrier* empty) {
    if (threadIdx.x % 32 == 0) MbarrierArrive(empty);
  }

  // Where the group's rows lie and what they see; q_factor is there already.
  __device__ static void Describe(const HopperWork& w, int group, HopperRow* rows,
                                  HopperPlace* place) {
    const int row = static_cast<int>(threadIdx.x) % kGroup;
    if (row == kGroup - 1) {
      *place = {w.sequence.q_batch,
                w.head,
                w.sequence.q_begin + w.first_query,
                w.rows,
                w.rows_kept,
                w.begin,
                w.whole_begin,
                w.whole_end};
    }
    if (row >= kGroupRows) return;
    HopperRow& to = rows[row];
    to.first = to.last = to.position = 0;
    const int in_tile = group * kGroupRows + row;
    if (in_tile >= w.rows) return;
    const int64_t query = w.first_query + in_tile;
    const KeyRange range = w.sequence.rule.Range(query);
    to.first = static_cast<int32_t>(range.begin);
    to.last = static_cast<int32_t>(range.end);
    to.position = static_cast<int32_t>(w.sequence.rule.Position(query));
  }
  __device__ static Rows RowsOf(const AttentionParams& p, const HopperRow* at) {
    Rows rows;
    rows.at = at;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      rows.factor[r] = kVariants ? 1.0f : p.scale * kLog2E * at[8 * r].q_factor;
      rows.max[r] = kNegInf;
      rows.sum[r] = 0.0f;
    }
    return rows;
  }

  // Writes output and log-sum-exp of the thread's rows.
  __device__ static void Store(const HopperParams& params, const HopperPlace& place, int first_row,
                               const Rows& rows, const float (&o)[kDim / 2]) {
    const AttentionParams& p = params.attention;
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = rows.sum[r], max = rows.max[r] * rows.factor[r], scale = 1.0f;
      sum += ShuffleXor(sum, 1);
      sum += ShuffleXor(sum, 2);
      const int in_tile = first_row + 8 * r;
      const bool real = in_tile < place.rows;
      if (real && p.sinks.present()) {  // a key without a value
        const float sink = p.sinks.As<const float>()[place.head * p.sinks.strides[0]] * kLog2E;
        const float most = fmaxf(max, sink), base = most == kNegInf ? 0.0f : most;
        scale = Exp2Fast(max - base);
        sum = MultiplyAdd(sum, scale, Exp2Fast(sink - base));
        max = most;
      }
      if (in_tile >= place.rows_kept) continue;
      const bool empty = !real || sum == 0.0f;
      const float normalizer = empty ? 0.0f : scale * ReciprocalFast(sum);
      const int64_t row = place.row + in_tile;
      if (p.lse.present() && column == 0) {
        p.lse.As<float>()[place.q_batch * p.lse.strides[0] + place.head * p.lse.strides[1] +
                          row * p.lse.strides[2]] =
            empty ? kNegInf : MultiplyAdd(max, kLn2, Log(sum));
      }
      const int64_t base = place.q_batch * p.out.strides[0] + place.head * p.out.strides[1] +
                           row * p.out.strides[2] + column * p.out.strides[3];
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        const float* pair = &o[4 * j + 2 * r];
        const float low = real ? pair[0] * normalizer : 0.0f;
        const float high = real ? pair[1] * normalizer : 0.0f;
        if (!params.out_pairs) {
          StoreElement(p.out, base + 8 * j * p.out.strides[3], low);
          StoreElement(p.out, base + (8 * j + 1) * p.out.strides[3], high);
        } else if (p.out.dtype == DType::kF32) {
          StorePacked(p.out.As<float>() + base + 8 * j,
                      Packed<8>{{std::bit_cast<uint32_t>(low), std::bit_cast<uint32_t>(high)}});
        } else {
          StorePacked(p.out.As<uint16_t>() + base + 8 * j,
                      Packed<4>{{PackPair(p.out.dtype, low, high)}});
        }
      }
    }
  }

  __device__ static void Consume(const HopperParams& params, const HopperShared& shared,
                                 const Rings& rings, int group) {
    const AttentionParams& p = params.attention;
    const int t = static_cast<int>(threadIdx.x) % kGroup;
    const int row_in_group = t / 32 * 16 + t % 32 / 4;
    const int first_row = group * kGroupRows + row_in_group;
    uint16_t* q_tile = shared.q + group * kGroupRows * kDim;
    const MatrixDescriptor q = DescribeMatrix(q_tile, Swizzle::k128, 16, 8 * kRowBytes);
    const MatrixDescriptor k = DescribeMatrix(shared.k, Swizzle::k128, 16, 8 * kRowBytes);
    const MatrixDescriptor v =
        DescribeMatrix(shared.v, Swizzle::k128, kKeys * kRowBytes, 8 * kRowBytes);
    const int next_group = group + 1 == kTile.consumers ? 0 : group + 1;
    if (group + 1 == kTile.consumers) NamedBarrierArrive(TurnBarrier(0), 2 * kGroup);

    uint32_t step = 0;
#pragma unroll 1
    for (uint32_t round = 0; round * gridDim.x < params.tiles; ++round) {
      const uint32_t tile = HopperTileOfRound(round);
      if (tile >= params.tiles) continue;
      const HopperWork w = HopperWorkOf<kTile.rows(), kKeys>(params, tile);
      NamedBarrierSync(OwnBarrier(group), kGroup);  // nobody reads the tile before any more
      HopperRow* group_rows = shared.rows + group * kGroupRows;
      LoadQueries<T, kDim>(p, w, group, q_tile, group_rows);
      Describe(w, group, group_rows, shared.place + group);
      FenceProxyAsync();
      NamedBarrierSync(OwnBarrier(group), kGroup);
      Rows rows = RowsOf(p, group_rows + row_in_group);
      const HopperPlace& place = shared.place[group];

      float o[kDim / 2];
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;
      if (w.begin < w.end) {
        float s[kKeys / 2];
        uint32_t weights[kKeys / 16][4];
        float shrink[2];
        uint32_t missing = 0;
        bool masked = false;
        // Of the tile n, after its scores are there.
        const auto soften = [&](int n) {
          if (p.paged) {
            missing = shared.missing[SlotOf(step)];
            SyncWarp();  // one lane of the warp gives the slot back
          }
          masked = n < place.whole_begin || n >= place.whole_end || missing != 0;
          Release(rings.k_empty(SlotOf(step)));
          if constexpr (kVariants) Scores::ApplyVariants(p, s, rows, place.head, n * kKeys);
          if (masked) Scores::Mask(s, rows, n * kKeys, missing, params.piece);
          Scores::Softmax(s, rows, shrink);
        };
        const auto check_values = [&](int n, uint32_t at) {
          MbarrierWait(rings.v_full(SlotOf(at)), ParityOf(at));
          if (masked) {
            RemoveNonFinite(shared.v + SlotOf(at) * (kKeys * kDim), shared, at, o, rows, n * kKeys,
                            missing, params.piece);
          }
        };
        MbarrierWait(rings.k_full(SlotOf(step)), ParityOf(step));
        WarpgroupFence();
        MultiplyKeys(s, q, Advance(k, SlotOf(step) * kTileBytes));
        WarpgroupCommit();
        WarpgroupWait<0>(s);
        soften(w.end - 1);
        Scores::Round(s, weights);
#pragma unroll 1
        for (int n = w.end - 2; n >= place.begin; --n) {
          check_values(n + 1, step);
          ++step;
          MbarrierWait(rings.k_full(SlotOf(step)), ParityOf(step));
          NamedBarrierSync(TurnBarrier(group), 2 * kGroup);
          WarpgroupFence();
          MultiplyKeys(s, q, Advance(k, SlotOf(step) * kTileBytes));
          WarpgroupCommit();
          WarpgroupFence();
          MultiplyValues(o, weights, Advance(v, SlotOf(step - 1) * kTileBytes));
          WarpgroupCommit();
          NamedBarrierArrive(TurnBarrier(next_group), 2 * kGroup);
          WarpgroupWait<1>(s);
          soften(n);
          WarpgroupWait<0>(o);
          Release(rings.v_empty(SlotOf(step - 1)));
          Shrink(o, shrink);
          Scores::Round(s, weights);
        }
        check_values(place.begin, step);
        WarpgroupFence();
        MultiplyValues(o, weights, Advance(v, SlotOf(step) * kTileBytes));
        WarpgroupCommit();
        WarpgroupWait<0>(o);
        Release(rings.v_empty(SlotOf(step)));
        ++step;
      }
      Store(params, place, first_row, rows, o);
    }
    if (group == 0) NamedBarrierSync(TurnBarrier(0), 2 * kGroup);  // the last arrival
  }
};

template <typename T, int kDim, bool kVariants>
__global__ void __launch_bounds__(HopperTileOf(kDim, kVariants).threads(), 1)
    AttentionHopperKernel(const __grid_constant__ HopperParams params) {
  if constexpr (kHasWarpgroups) {
    constexpr HopperTile kTile = HopperTileOf(kDim, kVariants);
    SharedCarver carver;
    const HopperShared shared = CarveHopper(carver, kDim, kVariants);
    const Rings rings = {reinterpret_cast<Mbarrier*>(shared.barriers)};
    if (threadIdx.x == 0) {
      for (uint32_t slot = 0; slot < kHopperStages; ++slot) {
        MbarrierInit(rings.k_full(slot), 1);
        MbarrierInit(rings.v_full(slot), 1);
        MbarrierInit(rings.k_empty(slot), 4 * kTile.consumers);  // a lane of each warp
        MbarrierInit(rings.v_empty(slot), 4 * kTile.consumers);
        shared.suspects[slot] = 0;
      }
      FenceMbarrierInit();
    }
    SyncThreads();
    if (threadIdx.x < kGroup) {
      DecreaseRegisters<kTile.producer_registers>();
      if (threadIdx.x == 0) Produce<kDim, kVariants>(params, shared, rings);
    } else {
      IncreaseRegisters<kTile.consumer_registers>();
      // The same for all lanes, and the compiler knows.
      const int group = Shuffle(static_cast<int>(threadIdx.x) / kGroup - 1, 0);
      Consumer<T, kDim, kVariants>::Consume(params, shared, rings, group);
    }
  }
}

template <int kDim>
KernelFunction FunctionOf(DType dtype, bool variants, const char* name) {
  if (dtype == DType::kF16) {
    return variants ? MakeKernelFunction<&AttentionHopperKernel<F16, kDim, true>>(name)
                    : MakeKernelFunction<&AttentionHopperKernel<F16, kDim, false>>(name);
  }
  return variants ? MakeKernelFunction<&AttentionHopperKernel<BF16, kDim, true>>(name)
                  : MakeKernelFunction<&AttentionHopperKernel<BF16, kDim, false>>(name);
}

}  // namespace hopper
}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
