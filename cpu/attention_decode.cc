// Decode attention: few query rows over a long cache. What counts is bytes of K and V, so each is
// read once for all query heads of its group (and all queries).
//
// Algorithm: flash-decoding (Dao et al. 2023) with grouped heads packed as in vLLM's CPU kernel.
// The Hq / Hkv * Sq query rows that share a key/value head are cut into blocks of up to 8. The
// visible keys are cut into chunks; a chunk runs in tiles of 16 to 64 keys: scores, online softmax,
// weighted values (attention_decode_tile-inl.h). Every chunk leaves (max, sum, acc) of its rows,
// and whoever finishes the last chunk of a key/value head merges them in order
// (core/ops/online_softmax.h).
//
// Variants are steps around that skeleton, not copies of it. Where keys lie and who sees them is
// settled when a tile is described (attention_decode_keys-inl.h): pages, new keys, windows, chunks,
// padding, masks. Soft cap, ALiBi, bias and the scales of i8 work on a tile's scores, which are in
// the first-level cache anyway. Sinks join when chunks are merged. Ragged batches give every task
// its own lengths.
//
// Tasks: (batch, kv head, chunk). Chunk boundaries depend on the arguments only, never on the
// number of threads, and merging is in chunk order: results are bit-identical at any thread count.
// In batch-invariant calls all chunks have the same number of keys.
//
// Memory: K and V of the visible keys once, in place, in their own type; partial results of
// rows * Dv floats per chunk, written and read once if there are several. The scores of a tile are
// computed before the values of the one before it are used, so that the latency of softmax hides
// behind multiply-adds. While a tile of K or V is worked on, the one used next is fetched, at the
// end of a task that of the next (Fetcher). Tiles that no row sees are not read.
//
// Where q is bf16 like the cache, there is a kernel with bf16 dot products
// (attention_decode_pairs-inl.h), and for i8 caches one with integer dot products
// (attention_decode_int8-inl.h).
//
// Range: up to 16 queries and 128 query rows per key/value head (so that rows, scores and
// accumulators of a tile stay in the first two cache levels); D, Dv, q rows and out rows contiguous
// (stride 1); any head sizes, f32/f16/bf16 in any mixture of q, cache, new keys and out, i8 caches;
// every variant of core/ops/attention.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_decode.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "core/dtype.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "core/status.h"
#include "cpu/attention_decode_keys-inl.h"
#include "cpu/attention_decode_plan-inl.h"
#include "cpu/attention_decode_steps-inl.h"
#include "cpu/attention_kernels.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Keys [begin, end) of the task, stored as T. `following`: the rows of the task that this worker
// will probably do next, or null, and its keys. fetch_first: nobody has fetched the first tile.
template <typename T, Products kHow>
void ProcessKeys(const DecodeTask& task, int worker, int64_t begin, int64_t end,
                 const DecodeRows* following, KeyRange following_keys, bool fetch_first) {
  if (begin >= end) return;
  const AttentionArgs& args = *task.args;
  const int64_t bytes = static_cast<int64_t>(sizeof(T));
  const int64_t tile_keys = TileKeys(args.head_dim() * bytes);
  char* memory = task.plan->tiles + worker * kRing * kTileBytes;
  KeyTile<T>* ring[kRing];
  for (int i = 0; i < kRing; ++i) ring[i] = reinterpret_cast<KeyTile<T>*>(memory + i * kTileBytes);
  KeyWalk<T> walk(args, task.rows, begin, end, tile_keys, task.plan->zeros);
  // Behind the last tile come keys of the next task, which are only fetched.
  int64_t tiles = INT64_MAX;
  const auto describe = [&](int64_t t) {
    KeyTile<T>& tile = *ring[t % kRing];
    if (t < tiles && walk.Next(tile)) return;
    tiles = std::min(tiles, t);
    if (t == tiles && t > 0 && following != nullptr &&
        KeyWalk<T>(args, *following, following_keys.begin, following_keys.end, tile_keys,
                   task.plan->zeros)
            .Next(tile)) {
      return;
    }
    tile.keys = 0;
  };
  const auto k_rows = [&](int64_t t) {
    const KeyTile<T>& tile = *ring[t % kRing];
    return Fetcher<T>(tile.k, tile.keys, args.head_dim() * bytes,
                      task.plan->fetch_into_second_level);
  };
  const auto v_rows = [&](int64_t t) {
    const KeyTile<T>& tile = *ring[t % kRing];
    return Fetcher<T>(tile.v, tile.keys, args.v_head_dim() * bytes,
                      task.plan->fetch_into_second_level);
  };
  describe(0);
  if (tiles == 0) return;
  // Tiles of i8 are half as long as others, so they are fetched two ahead, that of K while one of K
  // is worked on: 0.52 to 0.59 of read bandwidth instead of 0.46 to 0.51, two pairs of runs. f32
  // lost by it, up to a fifth (docs/results/cpu_targets.md).
  constexpr bool kTwoAhead = kHow == Products::kInt8;
  if (fetch_first) {
    k_rows(0).FetchRest();
    if (kTwoAhead) v_rows(0).FetchRest();
  }
  describe(1);
  const auto exists = [&](int64_t t) { return t < tiles || ring[t % kRing]->keys > 0; };
  // Used in this order: K of 0, K of 1, V of 0, K of 2, V of 1, ...
  const auto behind_k = [&](int64_t t) {
    if constexpr (kTwoAhead) return k_rows(exists(t + 1) ? t + 1 : t);
    return t == 0 && tiles > 1 ? k_rows(1) : v_rows(std::max<int64_t>(t - 1, 0));
  };
  const auto behind_v = [&](int64_t t) {
    if constexpr (kTwoAhead) return v_rows(exists(t + 1) ? t + 1 : t);
    const int64_t next_k = t + 1 < tiles ? t + 2 : t + 1;
    const bool k_follows = next_k < tiles || (t + 1 == tiles && exists(next_k));
    return k_follows ? k_rows(next_k) : v_rows(std::min(t + 1, tiles - 1));
  };
  ScoreTile<T, kHow>(task, *ring[0], 0, behind_k(0));
  for (int64_t t = 0; t < tiles; ++t) {
    if (t + 1 < tiles) {
      describe(t + 2);
      ScoreTile<T, kHow>(task, *ring[(t + 1) % kRing], (t + 1) % 2, behind_k(t + 1));
    }
    FinishTile<T, kHow>(task, walk, *ring[t % kRing], t % 2, behind_v(t));
  }
}

template <typename Fn>
void DispatchCache(DType dtype, Fn&& fn) {
  if (dtype == DType::kI8) return fn.template operator()<int8_t>();
  DispatchFloat(dtype, fn);
}

// Merges the chunks of one kv head in order, and writes its rows; rows that a ragged batch has
// beyond the sequence's queries are empty. parts: [chunks][rows][acc_stride], overwritten.
template <typename T>
HWY_NOINLINE void WriteRows(const AttentionArgs& args, const DecodePlan& plan,
                            const DecodeRows& rows, int64_t head, float* parts) {
  const DF d;
  const int64_t v_head_dim = args.v_head_dim();
  const int64_t chunk_floats = plan.rows * plan.acc_stride;
  const int64_t written = args.q_offsets.present() ? rows.rows : rows.group * args.q_len();
  for (int64_t row = 0; row < written; ++row) {
    T* out = args.out.At<T>(rows.Offset(args.out, row));
    float* lse = args.lse.present() ? args.lse.At<float>(rows.Offset(args.lse, row)) : nullptr;
    if (row >= rows.rows) {
      std::fill_n(out, v_head_dim, T{});
      if (lse != nullptr) *lse = kNegInf;
      continue;
    }
    const int64_t first = head * plan.chunks;
    float* HWY_RESTRICT acc = parts + row * plan.acc_stride;
    SoftmaxState state = plan.partial[first * plan.rows + row];
    for (int64_t c = 1; c < plan.chunks; ++c) {
      const SoftmaxState& other = plan.partial[(first + c) * plan.rows + row];
      if (other.max == kNegInf && other.sum == 0.0f) continue;  // no key of it was seen
      const auto scales = state.Merge(other);
      const VF self = hn::Set(d, scales.self), factor = hn::Set(d, scales.other);
      const float* HWY_RESTRICT part = acc + c * chunk_floats;
      for (int64_t i = 0; i < v_head_dim; i += kLanes) {
        hn::Store(hn::MulAdd(hn::Load(d, part + i), factor, hn::Mul(hn::Load(d, acc + i), self)), d,
                  acc + i);
      }
    }
    float sink_scale = 1.0f;
    if (args.sinks.present()) {  // a key without a value
      const float sink = *args.sinks.At<float>(rows.Head(row) * args.sinks.stride(0));
      sink_scale = state.Merge({sink, ExpDiff(sink, sink)}).self;
    }
    const VF normalizer = hn::Set(d, state.Normalizer());
    const VF scale = hn::Set(d, sink_scale);
    for (int64_t i = 0; i < v_head_dim; i += kLanes) {
      StoreF32(hn::Mul(hn::Mul(hn::Load(d, acc + i), scale), normalizer), out + i,
               std::min<int64_t>(kLanes, v_head_dim - i));
    }
    if (lse != nullptr) *lse = state.LogSumExp();
  }
}

KeyRange ChunkOf(const DecodePlan& plan, const DecodeRows& rows, int64_t chunk) {
  const int64_t begin = std::min(rows.any.begin + chunk * plan.chunk, rows.any.end);
  return {begin, std::min(begin + plan.chunk, rows.any.end)};
}

template <Products kHow>
void RunDecodeTask(const AttentionArgs& args, const DecodePlan& plan, int64_t index, int worker) {
  const int64_t head = index / plan.chunks, chunk = index % plan.chunks;
  float* q = plan.q + worker * plan.padded_rows * plan.q_stride;
  float* unpacked = plan.unpacked + worker * kMaxBlockRows * plan.q_stride;
  float* scores = plan.scores + worker * 2 * plan.padded_rows * kTileKeys;
  float* state = plan.state + worker * plan.padded_rows * 2 * kLanes;
  float* acc = plan.task_acc + worker * plan.padded_rows * plan.acc_stride;
  SoftmaxState* partial = plan.partial + index * plan.rows;

  RowBlock blocks[kMaxDecodeRows];
  DecodeTask task = {&args,
                     &plan,
                     RowsOfHead(args, plan, head),
                     blocks,
                     0,
                     MakeScoreRules(args),
                     plan.staged + worker * plan.staged_bytes};
  const DecodeRows& rows = task.rows;
  const KeyRange keys = ChunkOf(plan, rows, chunk);
  for (int64_t row = 0; row < rows.rows;) {
    int padded = BlockRows(rows.rows - row);
    if constexpr (kHow == Products::kInt8) padded = Int8BlockRows(padded);
    RowBlock& block = blocks[task.num_blocks++];
    block = {static_cast<int>(std::min<int64_t>(padded, rows.rows - row)),
             padded,
             static_cast<int>(row),
             q + row * plan.q_stride,
             acc + row * plan.acc_stride,
             state + row * 2 * kLanes,
             state + row * 2 * kLanes + kLanes,
             scores + row * 2 * kTileKeys,
             {}};
    std::fill_n(block.max, kLanes, kNegInf);
    std::fill_n(block.sum, kLanes, 0.0f);
    std::fill_n(block.acc, padded * plan.acc_stride, 0.0f);
    if (keys.begin < keys.end) {
      PackRows<kHow>(args, rows, block, kHow == Products::kPairs ? 1.0f : task.rules.q_scale,
                     unpacked, plan.q_stride, q + row * plan.q_stride);
    }
    row += padded;
  }

  // The thread pool gives a worker neighbouring tasks.
  const int64_t following_index = index + 1;
  const bool fetched = plan.fetched[worker] == index;
  plan.fetched[worker] = following_index;
  DecodeRows following;
  KeyRange following_keys = {0, 0};
  if (following_index < plan.heads * plan.chunks) {
    following = RowsOfHead(args, plan, following_index / plan.chunks);
    following_keys = ChunkOf(plan, following, following_index % plan.chunks);
    following_keys.end = std::min(following_keys.end, following.sequence.cache_len);
  }
  const DecodeRows* const hint = following_keys.begin < following_keys.end ? &following : nullptr;

  // New keys of the cache's type go with the cache.
  const int64_t cached = args.k_new.present() && args.k_new.dtype == args.k.dtype
                             ? keys.end
                             : std::min(keys.end, rows.sequence.cache_len);
  if constexpr (kHow == Products::kPairs) {
    ProcessKeys<BF16, kHow>(task, worker, keys.begin, keys.end, hint, following_keys, !fetched);
  } else if constexpr (kHow == Products::kInt8) {
    ProcessKeys<int8_t, kHow>(task, worker, keys.begin, cached, hint, following_keys, !fetched);
  } else {
    DispatchCache(args.k.dtype, [&]<typename T>() {
      ProcessKeys<T, kHow>(task, worker, keys.begin, cached, hint, following_keys, !fetched);
    });
  }
  if constexpr (kHow != Products::kPairs) {
    if (std::max(keys.begin, cached) < keys.end) {
      for (int b = 0; kHow == Products::kInt8 && b < task.num_blocks; ++b) {  // as floats
        PackRows<Products::kFloat>(args, rows, blocks[b], task.rules.q_scale, unpacked,
                                   plan.q_stride, q + blocks[b].first_row * plan.q_stride);
      }
      DispatchFloat(args.k_new.dtype, [&]<typename T>() {
        ProcessKeys<T, Products::kFloat>(task, worker, std::max(keys.begin, cached), keys.end,
                                         nullptr, {0, 0}, true);
      });
    }
  }

  for (int b = 0; b < task.num_blocks; ++b) {
    const RowBlock& block = blocks[b];
    for (int r = 0; r < block.rows; ++r) {
      float sum = 0.0f;
      for (int lane = r; lane < kLanes; lane += block.padded) sum += block.sum[lane];
      partial[block.first_row + r] = {block.max[r], sum};
    }
  }
  if (plan.chunks == 1) {
    DispatchFloat(args.out.dtype, [&]<typename T>() { WriteRows<T>(args, plan, rows, head, acc); });
    return;
  }
  std::copy_n(acc, plan.rows * plan.acc_stride, plan.acc + index * plan.rows * plan.acc_stride);
  // The last to finish sees every chunk's results.
  if (plan.finished[head].fetch_add(1, std::memory_order_acq_rel) == plan.chunks - 1) {
    float* parts = plan.acc + head * plan.chunks * plan.rows * plan.acc_stride;
    DispatchFloat(args.out.dtype,
                  [&]<typename T>() { WriteRows<T>(args, plan, rows, head, parts); });
  }
}

template <Products kHow>
absl::Status RunDecode(const KernelContext& context, const AttentionArgs& args) {
  if (args.out.empty() && (!args.lse.present() || args.lse.empty())) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  DecodePlan plan = MakePlan(args, pool.size(), *context.workspace);
  const int64_t bytes = plan.keys * ByteOffset(args.k.dtype, args.head_dim() + args.v_head_dim());
  // AMX tells Intel's cores from others. What fits the caches may be there, and then comes late.
  constexpr int64_t kFromMemory = int64_t{16} << 20;
  plan.fetch_into_second_level = CpuStream::Of(context).features().amx_bf16 && bytes >= kFromMemory;
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  for (int64_t i = 0; i < plan.heads; ++i) new (&plan.finished[i]) std::atomic<int64_t>(0);
  std::fill_n(plan.fetched, plan.workers, int64_t{-1});
  std::fill_n(plan.zeros, plan.acc_stride * static_cast<int64_t>(sizeof(float)), char{0});
  pool.ParallelFor(
      plan.heads * plan.chunks,
      [&](int64_t task, int worker) { RunDecodeTask<kHow>(args, plan, task, worker); }, bytes);
  return absl::OkStatus();
}

int64_t DecodeWorkspaceBytes(const KernelContext& context, const AttentionArgs& args) {
  if (args.out.empty() && (!args.lse.present() || args.lse.empty())) return 0;
  Workspace counting = Workspace::Counting();
  MakePlan(args, CpuStream::Of(context).pool().size(), counting);
  return counting.bytes_used();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

// The most queries of any sequence.
int64_t MostQueries(const AttentionArgs& args) {
  if (!args.q_offsets.present()) return args.q_len();
  int64_t most = 0;
  for (int64_t b = 0; b < args.batch(); ++b) most = std::max(most, args.Sequence(b).rule.q_len);
  return most;
}

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckContiguousRows(args));
  if (args.batch_invariant && args.q_offsets.present()) {
    return Unimplemented(
        "batch_invariant: whether packed queries are few depends on the other sequences");
  }
  const int64_t queries = MostQueries(args);
  if (queries > kMaxDecodeQueries) {
    return Unimplemented("at most ", kMaxDecodeQueries, " queries per sequence, got ", queries);
  }
  if (args.group() * queries > kMaxDecodeRows) {
    return Unimplemented("at most ", kMaxDecodeRows, " query rows per key/value head, got ",
                         args.group() * queries);
  }
  return absl::OkStatus();
}

absl::Status SupportsPairs(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(Supports<Isa::kAvx512>(context, args));
  return CheckBf16Pairs(context, args);
}

bool AppliesInt8(const AttentionArgs& args) { return args.k.dtype == DType::kI8; }

absl::Status SupportsInt8(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(Supports<Isa::kAvx512>(context, args));
  if (!CpuStream::Of(context).features().avx512_vnni) {
    return Unimplemented("needs a processor with AVX512_VNNI");
  }
  if (args.k.dtype != DType::kI8) {
    return Unimplemented("k: needs i8, got ", std::string(Name(args.k.dtype)));
  }
  constexpr int64_t kMaxHeadDim = 512;  // sums of products fit 32 bits
  if (args.head_dim() > kMaxHeadDim) {
    return Unimplemented("q dim 3: at most ", kMaxHeadDim, ", got ", args.head_dim());
  }
  return absl::OkStatus();
}

}  // namespace

Kernel<AttentionArgs> AttentionDecodeBf16Dot() {
  return {"decode_bf16dot",
          DeviceKind::kCpu,
          SupportsPairs,
          N_AVX3::DecodeWorkspaceBytes,
          N_AVX3::RunDecode<N_AVX3::Products::kPairs>,
          AppliesBf16Pairs};
}

Kernel<AttentionArgs> AttentionDecodeInt8Dot() {
  return {"decode_int8dot",
          DeviceKind::kCpu,
          SupportsInt8,
          N_AVX3::DecodeWorkspaceBytes,
          N_AVX3::RunDecode<N_AVX3::Products::kInt8>,
          AppliesInt8};
}

Kernel<AttentionArgs> AttentionDecode(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"decode_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>,
              N_AVX3::DecodeWorkspaceBytes, N_AVX3::RunDecode<N_AVX3::Products::kFloat>};
    case Isa::kAvx2:
      return {"decode_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, N_AVX2::DecodeWorkspaceBytes,
              N_AVX2::RunDecode<N_AVX2::Products::kFloat>};
    default:
      return {"decode_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>,
              TANDEM_N_SCALAR::DecodeWorkspaceBytes,
              TANDEM_N_SCALAR::RunDecode<TANDEM_N_SCALAR::Products::kFloat>};
  }
}

}  // namespace tandem::cpu

#endif  // HWY_ONCE
