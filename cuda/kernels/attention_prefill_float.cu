// Prefill attention in f32 (`prefill_f32`): FlashAttention-2's loop (Dao 2023) in fused
// multiply-adds, for what 16 bits would lose: f32 caches, and int8 caches with f32 queries. Never
// TF32.
//
//   * Task. As in attention_prefill_kernel.h: a block has 64 rows (queries x heads of a group) of
//     one sequence and key/value head, the last tiles of rows first; each of its four warps has 16.
//   * Tile. 32 keys of K and of V in shared memory, as floats: int8 is multiplied by its scale, 16
//     bits are widened, on the way in. K of the next tile is copied while V of this one is used,
//     and V while K is: by cp.async where rows are f32 and aligned. A lane has 4 rows x 4 keys of
//     the scores, then 4 rows x (Dv / 8) values: 64 multiply-adds for 8 vectors of shared memory,
//     and 256 for 20 at 128 values, whose reads conflict in no bank.
//   * Softmax. Online, base 2, in registers; weights pass through shared memory within their warp.
//   * Traffic. K and V come from the second-level cache once per row tile; q and out once.
//   * NaN. A hidden key's weight is -0. Keys that no row of the block sees are zeros; where a warp
//     hides keys of a tile whose values are not all finite, products with weight -0 are left out.
#include "cuda/device/chunk.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/kernels/attention_prefill_float.h"
#include "cuda/kernels/attention_prefill_kernel.h"
#include "cuda/kernels/attention_scores.h"
#include "cuda/kernels/attention_weights.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

constexpr int kKeys = kPrefillFloatKeys;
constexpr int kWarpRows = kPrefillFloatRows / kPrefillWarps;
constexpr int kRows = 4;          // of a lane: lane / 8 + 4 i of its warp's
constexpr int kColumns = 4;       // keys of a lane: lane % 8 + 8 j
constexpr int kQuadColumns = 32;  // values that the 8 lanes of a row have together, 4 each

struct Four {
  float x[4];
};
__device__ inline Four LoadFour(const float* from) {
  const Packed<16> words = LoadPacked<16>(from);
  return {{std::bit_cast<float>(words.words[0]), std::bit_cast<float>(words.words[1]),
           std::bit_cast<float>(words.words[2]), std::bit_cast<float>(words.words[3])}};
}
__device__ inline void StoreFour(float* to, float a, float b, float c, float d) {
  StorePacked(to, Packed<16>{{std::bit_cast<uint32_t>(a), std::bit_cast<uint32_t>(b),
                              std::bit_cast<uint32_t>(c), std::bit_cast<uint32_t>(d)}});
}

// Where a key lies: the address of its row of k or v, 0 if nobody sees it or the page table leads
// nowhere; what int8 elements are to be multiplied with.
struct KeyPlace {
  uint64_t row = 0;
  float factor = 1.0f;
  bool fresh = false;  // one of k_new
};

__device__ inline KeyPlace FindKey(const AttentionParams& a, const PrefillBlock& block,
                                   const DeviceTensor& cache, const DeviceTensor& added,
                                   const DeviceTensor& scales, int32_t j) {
  KeyPlace place;
  place.fresh = j >= block.cache_len;
  if (j < block.begin || j >= block.end) return place;
  const DeviceTensor& t = place.fresh ? added : cache;
  const int64_t offset = place.fresh ? block.batch * t.strides[0] + block.kv_head * t.strides[1] +
                                           static_cast<int64_t>(j - block.cache_len) * t.strides[2]
                                     : CacheOffset(a, t, block.batch, block.kv_head, j);
  if (offset < 0) return place;
  place.row = reinterpret_cast<uint64_t>(ElementAddress(t, offset));
  if (!place.fresh && scales.present()) {
    place.factor = scales.As<const float>()[CacheOffset(a, scales, block.batch, block.kv_head, j)];
  }
  return place;
}

// Tiles of keys of one sequence and head, as floats.
template <int kDim>
class FloatKeys {
 public:
  __device__ FloatKeys(const AttentionPrefillParams& p, const PrefillBlock& block)
      : p_(p), block_(block) {}

  // Queue the copies of a tile's keys, or of its values. A warp copies 8 of them.
  __device__ void LoadK(float* tile, uint8_t* there, int32_t first) const {
    const AttentionParams& a = p_.a;
    const KeyPlace at = FindKey(a, block_, a.k, a.k_new, a.k_scale, KeyOf(first));
    if (LaneId() < kShare) there[WarpId() * kShare + LaneId()] = at.row != 0;
    Load(tile, a.k, a.k_new, p_.copy_k, p_.copy_k_new, at);
  }
  __device__ void LoadV(float* tile, int32_t first) const {
    const AttentionParams& a = p_.a;
    Load(tile, a.v, a.v_new, p_.copy_v, p_.copy_v_new,
         FindKey(a, block_, a.v, a.v_new, a.v_scale, KeyOf(first)));
  }

 private:
  static constexpr int kStride = PrefillFloatShape{kDim}.stride();
  static constexpr int kChunks = kDim / kChunk;
  static constexpr int kShare = kKeys / kPrefillWarps;

  __device__ static int32_t KeyOf(int32_t first) {
    return first + WarpId() * kShare + LaneId() % kShare;
  }

  // at: of the key that the lane has found.
  __device__ static void Load(float* tile, const DeviceTensor& cache, const DeviceTensor& added,
                              bool copy_cache, bool copy_added, const KeyPlace& at) {
    const int columns = static_cast<int>(cache.dims[3]);
#pragma unroll 1
    for (int i = 0; i < kShare * kChunks / kWarpSize; ++i) {
      const int piece = i * kWarpSize + LaneId(), source = piece / kChunks;
      const int d = piece % kChunks * kChunk;
      const auto* from = reinterpret_cast<const char*>(Shuffle(at.row, source));
      const float times = Shuffle(at.factor, source);
      const bool is_fresh = Shuffle(static_cast<int>(at.fresh), source) != 0;
      float* to = tile + (WarpId() * kShare + source) * kStride + d;
      const int left = from == nullptr ? 0 : columns - d;  // elements that are there
      if ((is_fresh ? copy_added : copy_cache) || left <= 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int rest = left - half * 4, valid = rest <= 0 ? 0 : rest < 4 ? rest * 4 : 16;
          // The address must be one even where nothing is read.
          CopyAsync<16>(to + half * 4, valid > 0 ? from + (d + half * 4) * 4 : cache.As<char>(),
                        valid);
        }
        continue;
      }
      const DeviceTensor& t = is_fresh ? added : cache;
      const Chunk chunk = LoadElements(from, t.dtype, t.strides[3], d, columns, times);
      StoreFour(to, chunk.x[0], chunk.x[1], chunk.x[2], chunk.x[3]);
      StoreFour(to + 4, chunk.x[4], chunk.x[5], chunk.x[6], chunk.x[7]);
    }
  }

  const AttentionPrefillParams& p_;
  const PrefillBlock& block_;
};

// A warp's rows of q; zeros behind its elements, and for rows that are none.
template <int kDim>
__device__ inline void LoadRows(const AttentionPrefillParams& p, const PrefillBlock& block,
                                const PrefillRow* rows, float* to) {
  constexpr int kStride = PrefillFloatShape{kDim}.stride(), kChunks = kDim / kChunk;
  const DeviceTensor& q = p.a.q;
  const int columns = static_cast<int>(q.dims[3]);
#pragma unroll 1
  for (int piece = LaneId(); piece < kWarpRows * kChunks; piece += kWarpSize) {
    const int row = WarpId() * kWarpRows + piece / kChunks, d = piece % kChunks * kChunk;
    const PrefillRow info = rows[row];
    Chunk x = {};
    const int left = info.query < 0 ? 0 : columns - d;
    const int64_t offset = block.q_batch * q.strides[0] + info.head * q.strides[1] +
                           (block.q_begin + info.query) * q.strides[2];
    if (p.vector_q && left >= kChunk) {
      x = LoadChunk(q, offset, {d, d + 4});
    } else if (left > 0) {
      x = LoadElements(ElementAddress(q, offset), q.dtype, q.strides[3], d, columns, 1.0f);
    }
    StoreFour(to + row * kStride + d, x.x[0], x.x[1], x.x[2], x.x[3]);
    StoreFour(to + row * kStride + d + 4, x.x[4], x.x[5], x.x[6], x.x[7]);
  }
}

// One warp's rows while it goes through the keys.
template <int kDim>
struct FloatWarp {
  static constexpr int kStride = PrefillFloatShape{kDim}.stride();
  static constexpr int kWeightStride = PrefillFloatShape::weight_stride();
  static constexpr int kParts = kDim / kQuadColumns;

  const AttentionPrefillParams& p;
  const PrefillFloatShared& shared;
  int first_row;  // of the lane; the others are 4 apart
  float out[kRows][kParts][4];
  float max[kRows], sum[kRows];  // sum: of this lane's keys
  float s[kRows][kColumns];

  __device__ FloatWarp(const AttentionPrefillParams& params, const PrefillFloatShared& memory)
      : p(params), shared(memory), first_row(WarpId() * kWarpRows + LaneId() / 8) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      max[i] = kNegInf;
      sum[i] = 0.0f;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][part][e] = 0.0f;
      }
    }
  }

  // s = q k.
  __device__ void Products() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) s[i][j] = 0.0f;
    }
    const float* q = shared.q + first_row * kStride;
    const float* k = shared.k + LaneId() % 8 * kStride;
    const int columns = static_cast<int>(p.a.q.dims[3]);
#pragma unroll 2
    for (int d = 0; d < columns; d += 4) {
      Four a[kRows], b[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) a[i] = LoadFour(q + i * 4 * kStride + d);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) b[j] = LoadFour(k + j * 8 * kStride + d);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) {
            s[i][j] = MultiplyAdd(a[i].x[e], b[j].x[e], s[i][j]);
          }
        }
      }
    }
  }

  // Products become scores in units of log 2, those of hidden keys -inf. `there`: of the tile.
  __device__ void Score(const PrefillBlock& block, const uint8_t* there, int32_t first) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const PrefillRow info = shared.rows[first_row + i * 4];
      const bool real = info.query >= 0;
      const VariantScores::Row row =
          VariantScores::RowOf(p.a,
                               {block.batch, real ? info.head : 0,
                                real ? block.q_begin + info.query : 0, block.position + info.query},
                               1.0f);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int key = LaneId() % 8 + j * 8;
        const int32_t at = first + key;
        bool visible = at >= info.begin && at < info.end && there[key] != 0;
        // Without a branch: of a key that is not visible what is read is of key 0.
        const int32_t read = visible ? at : 0;
        visible = visible && VariantScores::Shows(p.a, row, read);
        const float score = VariantScores::Score(p.a, row, s[i][j], read);
        s[i][j] = visible ? score : kNegInf;
      }
    }
  }

  // Scores become weights, in shared memory; out and sums are brought to the new maxima.
  __device__ void Weigh() {
    float rescale[kRows];
    bool changes = false;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float m = max[i];  // a NaN is never larger
#pragma unroll
      for (int j = 0; j < kColumns; ++j) m = s[i][j] > m ? s[i][j] : m;
#pragma unroll
      for (int step = 1; step < 8; step *= 2) {
        const float other = ShuffleXor(m, step);
        m = other > m ? other : m;
      }
      rescale[i] = m == max[i] ? 1.0f : Exp2Fast(max[i] - m);
      changes = changes || m != max[i];
      max[i] = m;
      const float base = m == kNegInf ? 0.0f : m;  // nothing seen yet: all are -inf
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float weight = s[i][j] == kNegInf ? -0.0f : Exp2Fast(s[i][j] - base);
        total += weight;
        shared.weights[(first_row + i * 4) * kWeightStride + LaneId() % 8 + j * 8] = weight;
      }
      sum[i] = sum[i] * rescale[i] + total;
    }
    SyncWarp();  // the weights are there
    if (!Any(changes)) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[i][part][e] *= rescale[i];
      }
    }
  }

  // Does the tile of values hold a NaN or an infinity?
  __device__ bool HoldsNonFinite() const {
    bool found = false;
#pragma unroll 1
    for (int key = LaneId() / 8; key < kKeys; key += 4) {
#pragma unroll 1
      for (int d = LaneId() % 8 * 4; d < kDim; d += kQuadColumns) {
        const Four v = LoadFour(shared.v + key * kStride + d);
#pragma unroll
        for (int e = 0; e < 4; ++e) found = found || !IsFinite(v.x[e]);
      }
    }
    return Any(found);
  }

  // out += weights v. kSeenOnly: whatever the values of hidden keys are.
  template <bool kSeenOnly>
  __device__ void Accumulate() {
    const float* weights = shared.weights + first_row * kWeightStride;
    const float* v = shared.v + LaneId() % 8 * 4;
    const int columns = static_cast<int>(p.a.out.dims[3]);
#pragma unroll 1
    for (int key = 0; key < kKeys; key += 4) {
      Four w[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) w[i] = LoadFour(weights + i * 4 * kWeightStride + key);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (part * kQuadColumns >= columns) break;
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const Four value = LoadFour(v + (key + step) * kStride + part * kQuadColumns);
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const bool hidden = kSeenOnly && IsHiddenWeight(w[i].x[step]);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              out[i][part][e] =
                  MultiplyAdd(w[i].x[step], hidden ? 0.0f : value.x[e], out[i][part][e]);
            }
          }
        }
      }
    }
    SyncWarp();  // before the weights are overwritten
  }

  __device__ void Write(const PrefillBlock& block) {
    const AttentionParams& a = p.a;
    const int columns = static_cast<int>(a.out.dims[3]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int step = 1; step < 8; step *= 2) sum[i] += ShuffleXor(sum[i], step);
      const PrefillRow info = shared.rows[first_row + i * 4];
      if (info.query < 0) continue;
      float scale = 1.0f;
      if (a.sinks.present() && info.query < block.q_len) {  // a key without a value
        const float sink = kLog2E * a.sinks.As<const float>()[info.head * a.sinks.strides[0]];
        const float most = sink > max[i] ? sink : max[i];
        if (most != kNegInf) {
          scale = Exp2Fast(max[i] - most);
          sum[i] = sum[i] * scale + Exp2Fast(sink - most);
          max[i] = most;
        }
      }
      if (LaneId() % 8 == 0 && a.lse.present()) {
        a.lse.As<float>()[block.q_batch * a.lse.strides[0] + info.head * a.lse.strides[1] +
                          (block.q_begin + info.query) * a.lse.strides[2]] =
            sum[i] == 0.0f ? kNegInf : max[i] * kLn2 + Log(sum[i]);
      }
      scale *= sum[i] == 0.0f ? 0.0f : ReciprocalFast(sum[i]);
      const int64_t at = block.q_batch * a.out.strides[0] + info.head * a.out.strides[1] +
                         (block.q_begin + info.query) * a.out.strides[2];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int d = part * kQuadColumns + LaneId() % 8 * 4;
        float x[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = out[i][part][e] * scale;
        if (p.vector_out && d + 4 <= columns) {
          if (a.out.dtype == DType::kF32) {
            StoreFour(a.out.As<float>() + at + d, x[0], x[1], x[2], x[3]);
          } else {
            StorePacked(
                a.out.As<uint16_t>() + at + d,
                Packed<8>{{PackPair(a.out.dtype, x[0], x[1]), PackPair(a.out.dtype, x[2], x[3])}});
          }
          continue;
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (d + e < columns) StoreElement(a.out, at + (d + e) * a.out.strides[3], x[e]);
        }
      }
    }
  }
};

// Two blocks per multiprocessor but for the largest head size, whose shared memory holds one.
template <int kDim>
__global__ void __launch_bounds__(kPrefillThreads, kDim <= 128 ? 2 : 1)
    AttentionPrefillFloatKernel(const AttentionPrefillParams p) {
  SharedCarver carver;
  const PrefillFloatShared shared = CarvePrefillFloat(carver, PrefillFloatShape{kDim});
  {
    const PrefillTask task = TaskOfBlock(p, kPrefillFloatRows);
    if (task.tile < 0) return;
    const PrefillShared plan = {nullptr, shared.block, shared.ranges, shared.rows,
                                nullptr, nullptr,      nullptr};
    PlanRows(p, task, kPrefillFloatRows, plan);
  }
  SyncThreads();
  const PrefillRange all = RangeOf(shared.rows, 0, kPrefillFloatRows);
  const PrefillRange seen = RangeOf(shared.rows, WarpId() * kWarpRows, kWarpRows);
  if (LaneId() == 0) shared.ranges[WarpId()] = seen;
  if (threadIdx.x == 0) {
    shared.block->begin = all.begin;
    shared.block->end = all.end;
  }
  SyncThreads();
  LoadRows<kDim>(p, *shared.block, shared.rows, shared.q);
  SyncWarp();

  // The empty range has begin > end.
  const bool any = all.begin < all.end;
  const int32_t last = any ? (all.end + kKeys - 1) / kKeys : 0;
  const int32_t begin = any ? all.begin / kKeys : 0;
  const auto load_k = [&](int32_t tile) {
    if (tile < last) {
      FloatKeys<kDim>(p, *shared.block)
          .LoadK(shared.k, shared.there + (tile & 1) * kKeys, tile * kKeys);
    }
    CopyAsyncCommit();
  };
  const auto load_v = [&](int32_t tile) {
    if (tile < last) FloatKeys<kDim>(p, *shared.block).LoadV(shared.v, tile * kKeys);
    CopyAsyncCommit();
  };
  FloatWarp<kDim> warp(p, shared);
  load_k(begin);
  CopyAsyncWait<0>();
  SyncThreads();
  load_v(begin);
#pragma unroll 1
  for (int32_t tile = begin; tile < last; ++tile) {
    const int32_t first = tile * kKeys;
    const PrefillRange range = shared.ranges[WarpId()];
    const bool skips = first >= range.end || first + kKeys <= range.begin;
    if (!skips) warp.Products();
    CopyAsyncWait<0>();
    SyncThreads();  // the values are there; nobody needs the keys any more
    load_k(tile + 1);
    if (!skips) {
      warp.Score(*shared.block, shared.there + (tile & 1) * kKeys, first);
      warp.Weigh();
      const bool hides = first < range.all_begin || first + kKeys > range.all_end || p.a.paged ||
                         p.a.mask.present() || p.a.bias.present();
      if (hides && warp.HoldsNonFinite()) {
        warp.template Accumulate<true>();
      } else {
        warp.template Accumulate<false>();
      }
    }
    CopyAsyncWait<0>();
    SyncThreads();  // the next keys are there; nobody needs the values any more
    load_v(tile + 1);
  }
  CopyAsyncWait<0>();
  warp.Write(*shared.block);
}

}  // namespace

KernelFunction AttentionPrefillFloatFunction(int dim) {
  switch (dim) {
    case 64:
      return MakeKernelFunction<&AttentionPrefillFloatKernel<64>>("attention_prefill_f32");
    case 128:
      return MakeKernelFunction<&AttentionPrefillFloatKernel<128>>("attention_prefill_f32");
    default:
      return MakeKernelFunction<&AttentionPrefillFloatKernel<256>>("attention_prefill_f32");
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
