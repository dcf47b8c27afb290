// Prefill attention on tensor cores, any GPU from sm_80 on: FlashAttention-2 (Dao 2023) with
// mma.sync, ldmatrix and cp.async, for 16-bit keys and values. Included by the sources that
// instantiate it, one per largest head size.
//
//   * Task. The rows of one sequence and key/value head are the queries of all heads of its group,
//     query by query (row = query * group + head in the group), so that short prefills fill tiles
//     and all rows of a block share K and V. A block takes PrefillShape::rows() of them; tiles with
//     the most keys (the last, if causal) come first. Each warp has its own rows and needs nothing
//     from the others but the tiles of K and V, which come through a ring in shared memory: while
//     one is worked on, the next is copied.
//   * Keys. The block goes over the tiles that any of its rows sees. A warp skips those that
//     none of its rows sees, and looks at the rule element by element only where some row does not
//     see all of the tile.
//   * Softmax. Online, base 2; accumulators are rescaled only where a row's maximum has grown; sums
//     over a row's columns stay in the four lanes of its quad until the end.
//   * Traffic. K and V are read from the second-level cache once per row tile; q and out once.
//   * NaN. Hidden scores are replaced. A hidden value would still meet a weight of 0: keys that no
//     row of the block sees are zeros in shared memory, and where a warp hides keys of a tile it
//     looks for values that are not finite there, and weighs them apart (AccumulateSpecial).
#pragma once

#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/kernels/attention_prefill_tile.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

struct PrefillTask {
  Sequence sequence;
  int64_t kv_head;
  int64_t tile;  // of rows; -1: nothing to do
};

// Block -> row tile of a packed batch: tiles of all sequences one after the other. Collective for
// each warp.
__device__ inline PrefillTask PackedTask(const AttentionPrefillParams& p, int64_t tile, int rows) {
  PrefillTask task = {{}, 0, -1};
  for (int64_t base = 0; base < p.a.sequences; base += kWarpSize) {
    const int64_t b = base + LaneId();
    int64_t own = 0;
    if (b < p.a.sequences) {
      own = SequenceOf(p.a, b).rule.q_len * p.group + rows - 1;
      own = static_cast<int64_t>(static_cast<uint64_t>(own) / static_cast<unsigned>(rows));
    }
    int64_t upto = own;
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int64_t below = ShuffleUp(upto, step);
      if (LaneId() >= step) upto += below;
    }
    const int before = WarpSum(upto <= tile ? 1 : 0);  // sequences that end before the tile
    if (before < kWarpSize) {
      task.sequence = SequenceOf(p.a, base + before);
      task.tile = tile - Shuffle(upto - own, before);
      return task;
    }
    tile -= Shuffle(upto, kWarpSize - 1);
  }
  return task;
}

// Rows of a packed batch that its offsets leave out: there are none in a valid call.
__device__ inline void ClearUncovered(const AttentionPrefillParams& p, int64_t kv_head) {
  const AttentionParams& a = p.a;
  const int64_t rows = a.q.dims[2];
  int64_t end = 0;
  bool whole = true;
  for (int64_t b = 0; b < a.sequences; ++b) {
    whole = whole && a.q_offsets.At(b, 0, rows, 0) == end;
    end = a.q_offsets.At(b + 1, 0, rows, 0);
  }
  if (whole && end == rows) return;
  for (int64_t row = threadIdx.x; row < rows; row += kPrefillThreads) {
    bool covered = false;
    for (int64_t b = 0; b < a.sequences; ++b) {
      covered = covered ||
                (row >= a.q_offsets.At(b, 0, rows, 0) && row < a.q_offsets.At(b + 1, 0, rows, 0));
    }
    for (int64_t head = kv_head * p.group; !covered && head < (kv_head + 1) * p.group; ++head) {
      const int64_t at = head * a.out.strides[1] + row * a.out.strides[2];
      for (int64_t d = 0; d < a.out.dims[3]; ++d) StoreElement(a.out, at + d * a.out.strides[3], 0);
      if (a.lse.present()) {
        a.lse.As<float>()[head * a.lse.strides[1] + row * a.lse.strides[2]] = kNegInf;
      }
    }
  }
}

// What this block works on; the last tiles first: with a causal mask they see the most keys.
// `rows`: of a tile. Collective.
__device__ inline PrefillTask TaskOfBlock(const AttentionPrefillParams& p, int rows) {
  PrefillTask task = {{}, 0, -1};
  const Divisor::Result by_head = p.kv_heads.Divide(blockIdx.x);
  if (p.a.packed) {
    const int64_t tile = p.tiles - by_head.quotient;
    if (tile == p.tiles) {
      ClearUncovered(p, by_head.remainder);
      return task;
    }
    task = PackedTask(p, tile, rows);
  } else {
    const Divisor::Result by_sequence = p.sequences.Divide(by_head.quotient);
    task.sequence = SequenceOf(p.a, by_sequence.remainder);
    task.tile = p.tiles - 1 - by_sequence.quotient;
  }
  task.kv_head = by_head.remainder;
  return task;
}

// Of rows first .. first + count - 1 of the block. Collective for each warp.
__device__ inline PrefillRange RangeOf(const PrefillRow* rows, int first, int count) {
  PrefillRange range = {INT32_MAX, 0, 0, INT32_MAX};
  for (int i = LaneId(); i < count; i += kWarpSize) {
    const PrefillRow row = rows[first + i];
    if (row.query < 0) continue;
    if (row.begin < row.end) {
      if (row.begin < range.begin) range.begin = row.begin;
      if (row.end > range.end) range.end = row.end;
    }
    if (row.begin > range.all_begin) range.all_begin = row.begin;
    if (row.end < range.all_end) range.all_end = row.end;
  }
  const auto least = [](int32_t a, int32_t b) { return a < b ? a : b; };
  const auto most = [](int32_t a, int32_t b) { return a > b ? a : b; };
  range.begin = WarpReduce(range.begin, least);
  range.end = WarpReduce(range.end, most);
  range.all_begin = WarpReduce(range.all_begin, most);
  range.all_end = WarpReduce(range.all_end, least);
  return range;
}

// Hides from the rows of a warp what the rule hides. `rows`: of the warp; first: key of the tile.
template <typename Warp>
__device__ inline void HideByRule(Warp& warp, const PrefillRow* rows, int32_t first) {
  const int group = LaneId() / 4;
  PrefillRow row = {};
  Warp::ForEach([&](int t, int h, int n, int e, int key) {
    if (n == 0 && e == 0) {
      row = rows[t * 16 + h * 8 + group];
    }
    if (first + key < row.begin || first + key >= row.end) warp.s[t][n][2 * h + e] = kNegInf;
  });
}

// Hides keys of a paged tile that its page table does not have. `there`: of the tile.
template <typename Warp>
__device__ inline void HideMissing(Warp& warp, const uint8_t* there) {
  Warp::ForEach([&](int t, int h, int n, int e, int key) {
    if (there[key] == 0) warp.s[t][n][2 * h + e] = kNegInf;
  });
}

// Which scores of a row tile are visible: bit 2 n + e of half h is that of s[t][n][2 h + e].
template <int kRowTiles>
struct Visible {
  uint32_t bits[kRowTiles];

  __device__ static uint32_t Bit(int h, int n, int e) { return 1u << (h * 16 + 2 * n + e); }
  // Of row r of this thread; the lane of the quad that has the key's scores knows. Collective.
  __device__ bool RowSees(int r, int key) const {
    const uint32_t word = Shuffle(bits[r / 2], (LaneId() & ~3) | key % 8 / 2);
    return (word & Bit(r % 2, key / 8, key % 2)) != 0;
  }
};

// Every variant: scores in units of log 2, -inf where a key is hidden. Each is a loop of its own
// over all scores, whose branch all threads take alike.
template <typename Warp>
__device__ inline Visible<Warp::kTiles> ApplyVariants(Warp& warp, const AttentionPrefillParams& p,
                                                      const PrefillBlock& block,
                                                      const PrefillRow* rows, const float* q_factor,
                                                      int32_t first) {
  const AttentionParams& a = p.a;
  const int group = LaneId() / 4;
  const int pair = LaneId() % 4 * 2;
  Visible<Warp::kTiles> visible;
#pragma unroll
  for (int t = 0; t < Warp::kTiles; ++t) {
    visible.bits[t] = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int own = t * 16 + h * 8 + group;
      const PrefillRow row = rows[own];
      const VariantScores::Row at = VariantScores::RowOf(
          a, {block.batch, row.head, block.q_begin + row.query, block.position + row.query},
          q_factor[own]);
      const auto each = [&](auto&& fn) {
#pragma unroll
        for (int n = 0; n < 2 * Warp::kKeySteps; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            fn(warp.s[t][n][2 * h + e], first + n * 8 + pair + e, visible.Bit(h, n, e));
          }
        }
      };
      each([&](float& x, int32_t j, uint32_t bit) {
        x = at.q_factor * x * a.scale;
        if (j >= row.begin && j < row.end) visible.bits[t] |= bit;
      });
      if (a.softcap > 0.0f) {
        each([&](float& x, int32_t, uint32_t) { x = a.softcap * Tanh(x * a.inverse_softcap); });
      }
      if (at.slope != 0.0f) {
        const auto position = at.position;
        each([&](float& x, int32_t j, uint32_t) {
          const int64_t distance = position - j;
          x -= at.slope * static_cast<float>(distance < 0 ? -distance : distance);
        });
      }
      if (a.mask.present()) {
        const int64_t stride = a.mask.strides[3];
        if (a.mask.dtype == DType::kBool) {
          const auto* mask = a.mask.As<const uint8_t>() + at.mask;
          each([&](float&, int32_t j, uint32_t bit) {
            if ((visible.bits[t] & bit) != 0 && mask[j * stride] == 0) visible.bits[t] &= ~bit;
          });
        } else {
          const auto* mask = a.mask.As<const uint32_t>() + at.mask;
          each([&](float&, int32_t j, uint32_t bit) {
            if ((visible.bits[t] & bit) != 0 && (mask[j / 32 * stride] >> (j % 32) & 1u) == 0) {
              visible.bits[t] &= ~bit;
            }
          });
        }
      }
      if (a.bias.present()) {
        const int64_t stride = a.bias.strides[3];
        const auto add = [&](auto load) {
          each([&](float& x, int32_t j, uint32_t bit) {
            if ((visible.bits[t] & bit) == 0) return;
            const float bias = load(at.bias + j * stride);
            if (bias == kNegInf) visible.bits[t] &= ~bit;
            x += bias;
          });
        };
        if (a.bias.dtype == DType::kF32) {
          add([&](int64_t i) { return a.bias.As<const float>()[i]; });
        } else if (a.bias.dtype == DType::kF16) {
          add([&](int64_t i) { return UnpackF16(a.bias.As<const uint16_t>()[i]).low; });
        } else {
          add([&](int64_t i) { return UnpackBF16(a.bias.As<const uint16_t>()[i]).low; });
        }
      }
      each([&](float& x, int32_t, uint32_t bit) {
        x = (visible.bits[t] & bit) != 0 ? x * kLog2E : kNegInf;
      });
    }
  }
  return visible;
}

// What the rows of a block see, and what it works on but for the range of keys.
__device__ inline void PlanRows(const AttentionPrefillParams& p, const PrefillTask& task, int rows,
                                const PrefillShared& shared) {
  const Sequence& sequence = task.sequence;
  const int64_t queries = p.a.packed ? sequence.rule.q_len : p.a.q.dims[2];
  const auto group = static_cast<uint32_t>(p.group);
  for (int r = static_cast<int>(threadIdx.x); r < rows; r += kPrefillThreads) {
    const auto row = static_cast<uint32_t>(task.tile * rows + r);
    const uint32_t query = row / group;
    PrefillRow info = {0, 0, -1, 0};
    if (query < queries) {
      info.query = static_cast<int32_t>(query);
      info.head = static_cast<int32_t>(task.kv_head * p.group + (row - query * group));
      if (query < sequence.rule.q_len) {
        const KeyRange range = sequence.rule.Range(query);
        info.begin = static_cast<int32_t>(range.begin);
        info.end = static_cast<int32_t>(range.end);
      }
    }
    shared.rows[r] = info;
  }
  if (threadIdx.x == 0) {
    *shared.block = {sequence.batch,
                     sequence.q_batch,
                     sequence.q_begin,
                     sequence.rule.q_len,
                     task.kv_head,
                     sequence.rule.Position(0),
                     static_cast<int32_t>(sequence.rule.kv_len - p.a.new_len),
                     0,
                     0};
  }
}

template <typename T, int kDim, bool kVariants, bool kInt8 = false>
__global__ void __launch_bounds__(kPrefillThreads)
    AttentionPrefillKernel(const AttentionPrefillParams p) {
  static_assert(!kInt8 || (kVariants && std::is_same_v<T, F16>));
  constexpr PrefillShape kShape = kInt8 ? PrefillI8ShapeOf(kDim) : PrefillShapeOf(kDim, kVariants);
  constexpr int kKeys = kShape.keys, kRows = kShape.rows(), kRowTiles = kShape.row_tiles;
  constexpr int kWarpRows = 16 * kRowTiles, kTerms = kShape.terms;
  using Warp = PrefillWarp<T, kDim, kRowTiles, kKeys, kTerms>;

  SharedCarver carver;
  const PrefillShared shared = CarvePrefill(carver, kShape);
  const int thread = static_cast<int>(threadIdx.x);

  {
    const PrefillTask task = TaskOfBlock(p, kRows);
    if (task.tile < 0) return;
    PlanRows(p, task, kRows, shared);
  }
  SyncThreads();

  const int first_row = WarpId() * kWarpRows;
  const PrefillRange all = RangeOf(shared.rows, 0, kRows);
  const PrefillRange seen = RangeOf(shared.rows, first_row, kWarpRows);
  if (LaneId() == 0) shared.ranges[WarpId()] = seen;
  if (thread == 0) {
    shared.block->begin = all.begin;
    shared.block->end = all.end;
  }
  SyncThreads();
  LoadQueries<T, kDim, kRows, kTerms>(p, *shared.block, shared);
  constexpr int kTile = kKeys * kDim;
  const auto k_tile = [&](int32_t tile) {
    return shared.memory + kTerms * kRows * kDim + (tile % kPrefillStages) * 2 * kTile;
  };
  const auto there = [&](int32_t tile) { return shared.there + tile % kPrefillStages * kKeys; };
  const auto scales = [&](int32_t tile) {
    return kInt8 ? shared.scales + tile % kPrefillStages * 2 * kKeys : nullptr;
  };
  // The empty range has begin > end.
  const int32_t last = all.begin < all.end ? (all.end + kKeys - 1) / kKeys : 0;
  const int32_t begin = all.begin < all.end ? all.begin / kKeys : 0;
  const auto load = [&](int32_t tile) {
    PrefillKeys<T, kDim, kKeys, kInt8>(p, *shared.block)
        .Load(k_tile(tile), k_tile(tile) + kTile, there(tile), scales(tile), tile * kKeys);
  };
  if (begin < last) load(begin);
  CopyAsyncCommit();
  SyncWarp();  // q_factor

  Warp warp;
  warp.Clear();
  float factor[2 * kRowTiles];
#pragma unroll
  for (int r = 0; r < 2 * kRowTiles; ++r) {
    const float q_factor = shared.q_factor[first_row + r * 8 + LaneId() / 4];
    factor[r] = kVariants ? 1.0f : p.a.scale * kLog2E * q_factor;
  }

#pragma unroll 1
  for (int32_t tile = begin; tile < last; ++tile) {
    // The tile and, before the first, q have arrived; everybody is done with the tile before.
    CopyAsyncWait<0>();
    SyncThreads();
    if (tile + 1 < last) load(tile + 1);
    CopyAsyncCommit();
    const int32_t first = tile * kKeys;
    const PrefillRange range = shared.ranges[WarpId()];
    if (first >= range.end || first + kKeys <= range.begin) continue;
    warp.Products(shared.memory + first_row * kDim, k_tile(tile), kRows * kDim);
    const uint16_t* v = k_tile(tile) + kTile;
    const bool hides = first < range.all_begin || first + kKeys > range.all_end;
    const PrefillRow* rows = shared.rows + first_row;
    const auto accumulate = [&](bool hidden, auto row_sees) {
      if (hidden && Warp::HoldsNonFinite(v)) {
        warp.AccumulateSpecial(v, row_sees);
      } else {
        warp.Accumulate(v);
      }
    };
    if constexpr (kInt8) {
      warp.ScaleScores(scales(tile));
      const auto visible =
          ApplyVariants(warp, p, *shared.block, rows, shared.q_factor + first_row, first);
      if (p.a.paged) HideMissing(warp, there(tile));
      warp.Softmax(factor);
      warp.ScaleWeights(scales(tile) + kKeys, [&](int t, int h, int n, int e) {
        return (visible.bits[t] & visible.Bit(h, n, e)) != 0;
      });
      warp.Accumulate(v);
    } else if constexpr (kVariants) {
      const auto visible =
          ApplyVariants(warp, p, *shared.block, rows, shared.q_factor + first_row, first);
      if (p.a.paged) HideMissing(warp, there(tile));
      warp.Softmax(factor);
      accumulate(hides || p.a.mask.present() || p.a.bias.present(),
                 [&](int r, int key) { return visible.RowSees(r, key); });
    } else {
      if (hides) HideByRule(warp, rows, first);
      if (p.a.paged) HideMissing(warp, there(tile));
      warp.Softmax(factor);
      accumulate(hides, [&](int r, int key) {
        const PrefillRow row = rows[r * 8 + LaneId() / 4];
        return first + key >= row.begin && first + key < row.end;
      });
    }
  }
  CopyAsyncWait<0>();
  SyncThreads();  // everybody is done with the tiles: the result goes there

  const PrefillBlock block = *shared.block;
  float* result = reinterpret_cast<float*>(shared.memory) + first_row * kDim;
#pragma unroll
  for (int r = 0; r < 2 * kRowTiles; ++r) {
    float sum = warp.sum[r];
    sum += ShuffleXor(sum, 1);
    sum += ShuffleXor(sum, 2);
    float max = warp.max[r] * factor[r];
    float scale = 1.0f;
    const int own = r * 8 + LaneId() / 4;
    const PrefillRow row = shared.rows[first_row + own];
    if (p.a.sinks.present() && row.query >= 0 && row.query < block.q_len) {
      const float sink = kLog2E * p.a.sinks.As<const float>()[row.head * p.a.sinks.strides[0]];
      const float most = fmaxf(max, sink);
      if (most != kNegInf) {
        scale = Exp2Fast(max - most);
        sum = sum * scale + Exp2Fast(sink - most);
        max = most;
      }
    }
    if (LaneId() % 4 == 0 && p.a.lse.present() && row.query >= 0) {
      p.a.lse.As<float>()[block.q_batch * p.a.lse.strides[0] + row.head * p.a.lse.strides[1] +
                          (block.q_begin + row.query) * p.a.lse.strides[2]] =
          sum == 0.0f ? kNegInf : max * kLn2 + Log(sum);
    }
    scale *= sum == 0.0f ? 0.0f : ReciprocalFast(sum);
    if constexpr (kInt8) scale *= PowerOfTwo(warp.exponent - 14);
      // Chunks of 8 floats, swizzled as the tiles are.
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      float* to = result + own * kDim + PrefillSwizzle<kDim>(own, n) * 8 + LaneId() % 4 * 2;
      StorePacked(to,
                  Packed<8>{{std::bit_cast<uint32_t>(warp.out[r / 2][n][r % 2 * 2] * scale),
                             std::bit_cast<uint32_t>(warp.out[r / 2][n][r % 2 * 2 + 1] * scale)}});
    }
  }
  SyncWarp();
  const DeviceTensor& out = p.a.out;
  const int columns = static_cast<int>(out.dims[3]);
#pragma unroll 1
  for (int i = LaneId(); i < kWarpRows * kDim / 8; i += kWarpSize) {
    const int own = i / (kDim / 8), n = i % (kDim / 8);
    const PrefillRow row = shared.rows[first_row + own];
    if (row.query < 0 || n * 8 >= columns) continue;
    const float* from = result + own * kDim + PrefillSwizzle<kDim>(own, n) * 8;
    const int64_t at = block.q_batch * out.strides[0] + row.head * out.strides[1] +
                       (block.q_begin + row.query) * out.strides[2];
    Chunk chunk;
#pragma unroll
    for (int e = 0; e < kChunk; ++e) chunk.x[e] = from[e];
    if (p.vector_out && n * 8 + 8 <= columns) {
      StoreChunk(out, at, {n * 8, n * 8 + 4}, chunk);
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        if (n * 8 + e < columns) StoreElement(out, at + (n * 8 + e) * out.strides[3], chunk.x[e]);
      }
    }
  }
}

template <int kDim>
KernelFunction AttentionPrefillFunction(DType type, bool variants) {
  if (type == DType::kF16) {
    return variants
               ? MakeKernelFunction<&AttentionPrefillKernel<F16, kDim, true>>(
                     "attention_prefill_variants")
               : MakeKernelFunction<&AttentionPrefillKernel<F16, kDim, false>>("attention_prefill");
  }
  return variants
             ? MakeKernelFunction<&AttentionPrefillKernel<BF16, kDim, true>>(
                   "attention_prefill_variants")
             : MakeKernelFunction<&AttentionPrefillKernel<BF16, kDim, false>>("attention_prefill");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
