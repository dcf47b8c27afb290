// Decode attention: few query rows over a long cache. What counts is bytes of K and V, so each is
// read once for all query heads of its group (and all queries).
//
// Algorithm: flash-decoding (Dao et al. 2023) with grouped heads packed as in vLLM's CPU kernel.
// The Hq / Hkv * Sq query rows that share a key/value head form one block. The visible keys are cut
// into chunks; a chunk runs in tiles of 32 to 128 keys: scores, online softmax, weighted values
// (attention_decode_tile-inl.h). Every chunk leaves (max, sum, acc) of its rows, and whoever
// finishes the last chunk of a key/value head merges them in order (core/ops/online_softmax.h).
//
// Tasks: (batch, kv head, chunk). Chunk boundaries depend on the arguments only, never on the
// number of threads, and merging is in chunk order: results are bit-identical at any thread count.
//
// Memory: K and V of the visible keys once, in place, in their own type; partial results of
// rows * Dv floats per chunk, written and read once. Prefetching covers the turn from K to V and
// back within a tile. Tiles that only some rows see in full (at most Sq - 1 keys at either end of
// the range) are masked; keys that no row sees are not read.
//
// Range: up to 8 queries and 128 query rows per key/value head (so that rows, scores and
// accumulators of a tile stay in the first two cache levels); D, Dv, q rows and out rows contiguous
// (stride 1); any head sizes, f32/f16/bf16 in any mixture of q, cache, new keys and out.
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

#include "core/dtype.h"
#include "core/kernel.h"
#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "core/status.h"
#include "cpu/attention_decode_tile-inl.h"
#include "cpu/attention_kernels.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// How one call is cut up, and where its scratch lies.
struct DecodePlan {
  int64_t rows;         // query rows per kv head
  int64_t padded_rows;  // room for the last block
  int64_t q_stride;     // D in whole vectors
  int64_t acc_stride;   // Dv in whole vectors
  KeyRange any;         // keys that some row sees
  KeyRange all;         // keys that every row sees (may be empty)
  int64_t chunk;        // keys per chunk
  int64_t chunks;
  int64_t heads;  // B * Hkv

  // Per worker.
  float* q;       // [padded_rows * q_stride]
  float* scores;  // [kScoreFloats]
  float* state;   // [padded_rows][2][kAcc]
  // Per (batch, kv head, chunk).
  float* acc;             // [padded_rows][acc_stride]
  SoftmaxState* partial;  // [rows]
  // Per (batch, kv head).
  std::atomic<int64_t>* finished;
};

int64_t RoundUp(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// At least 256 keys per chunk, and no more chunks than give every core of a large machine a few.
// A function of the problem alone.
int64_t ChunkKeys(int64_t keys, int64_t heads) {
  constexpr int64_t kMinChunk = 256;
  constexpr int64_t kTasks = 256;
  const int64_t chunks = std::clamp<int64_t>(kTasks / heads, 1, 64);
  return std::max(kMinChunk, RoundUp((keys + chunks - 1) / chunks, kTileKeys));
}

DecodePlan MakePlan(const AttentionArgs& args, int64_t workers, Workspace& workspace) {
  DecodePlan plan = {};
  plan.rows = args.group() * args.q_len();
  plan.padded_rows = plan.rows + kMaxBlockRows;
  plan.q_stride = RoundUp(args.head_dim(), kLanes);
  plan.acc_stride = std::max<int64_t>(RoundUp(args.v_head_dim(), kLanes), kLanes);
  const MaskRule rule = args.Rule();
  const KeyRange first = rule.Range(0), last = rule.Range(args.q_len() - 1);
  plan.any = {first.begin, last.end};  // both bounds grow with the query
  plan.all = {last.begin, first.end};
  plan.heads = args.batch() * args.kv_heads();
  const int64_t keys = plan.any.end - plan.any.begin;
  plan.chunk = ChunkKeys(keys, std::max<int64_t>(plan.heads, 1));
  plan.chunks = std::max<int64_t>(1, (keys + plan.chunk - 1) / plan.chunk);
  const int64_t tasks = plan.heads * plan.chunks;
  plan.q = workspace.Take<float>(workers * plan.padded_rows * plan.q_stride);
  plan.scores = workspace.Take<float>(workers * kScoreFloats);
  plan.state = workspace.Take<float>(workers * plan.padded_rows * 2 * kAcc);
  plan.acc = workspace.Take<float>(tasks * plan.padded_rows * plan.acc_stride);
  plan.partial = workspace.Take<SoftmaxState>(tasks * plan.rows);
  plan.finished = workspace.Take<std::atomic<int64_t>>(plan.heads);
  return plan;
}

// Rows of the block that starts at `row`: the largest power of two that is not half empty.
int BlockRows(int64_t rows_left) {
  if (rows_left > 4 && kMaxBlockRows >= 8) return 8;
  if (rows_left > 2) return 4;
  return static_cast<int>(rows_left);
}

// Element offset of query row `row` (query * group + head of the group) in q, out or lse.
int64_t RowOffset(const AttentionArgs& args, const TensorView& view, int64_t head, int64_t row) {
  const int64_t group = args.group();
  const int64_t q_head = head % args.kv_heads() * group + row % group;
  return head / args.kv_heads() * view.stride(0) + q_head * view.stride(1) +
         row / group * view.stride(2);
}

// Rows [first, first + block) as [vector][row][lane], f32; rows beyond `rows` are zero.
template <typename T>
HWY_NOINLINE void PackRows(const AttentionArgs& args, int64_t head, int64_t first, int block,
                           int64_t rows, float* HWY_RESTRICT out) {
  const DF d;
  const int64_t head_dim = args.head_dim();
  const int64_t vectors = (head_dim + kLanes - 1) / kLanes;
  for (int r = 0; r < block; ++r) {
    const bool real = first + r < rows;
    const T* row = real ? args.q.At<T>(RowOffset(args, args.q, head, first + r)) : nullptr;
    for (int64_t i = 0; i < vectors; ++i) {
      hn::Store(real ? LoadF32Part(row, i, head_dim) : hn::Zero(d), d,
                out + (i * block + r) * kLanes);
    }
  }
}

template <typename T>
void ProcessBlock(int block_rows, const KeyTile<T>& tile, const TileShape& shape,
                  const RowBlock& block, const KeyRange* visible, float* scores) {
  switch (block_rows) {
    case 1:
      return ProcessTile<T, 1>(tile, shape, block, visible, scores);
    case 2:
      return ProcessTile<T, 2>(tile, shape, block, visible, scores);
    case 4:
      return ProcessTile<T, 4>(tile, shape, block, visible, scores);
    default:
      if constexpr (kMaxBlockRows >= 8) {
        return ProcessTile<T, 8>(tile, shape, block, visible, scores);
      }
  }
}

// Keys per tile: 8 KB of K. Short tiles let K and V advance as two streams side by side, which the
// memory prefetchers follow; long ones have less to do between the two products.
int64_t TileKeys(int64_t row_bytes) {
  return std::clamp<int64_t>(RoundUp(8192 / row_bytes, 32), 32, kTileKeys);
}

// Keys [begin, end) of one source (the cache, or the new keys); `offset` is the source's first key
// position.
template <typename T>
void ProcessSource(const AttentionArgs& args, const DecodePlan& plan, const TensorView& k,
                   const TensorView& v, int64_t offset, int64_t head, int64_t begin, int64_t end,
                   const TileShape& shape, RowBlock* blocks, int num_blocks, float* scores) {
  const int64_t batch = head / args.kv_heads(), kv_head = head % args.kv_heads();
  const T* k_head = k.At<T>(batch * k.stride(0) + kv_head * k.stride(1));
  const T* v_head = v.At<T>(batch * v.stride(0) + kv_head * v.stride(1));
  const MaskRule rule = args.Rule();
  const int64_t tile_keys = TileKeys(args.head_dim() * static_cast<int64_t>(sizeof(T)));
  for (int64_t key = begin; key < end;) {
    // Tiles end where the set of rows that see the keys changes from some to all, or back.
    int64_t tile_end = std::min(end, key + tile_keys);
    if (plan.all.begin > key) tile_end = std::min(tile_end, plan.all.begin);
    if (plan.all.end > key) tile_end = std::min(tile_end, plan.all.end);
    const bool masked = key < plan.all.begin || tile_end > plan.all.end;
    const KeyTile<T> tile = {k_head + (key - offset) * k.stride(2),
                             v_head + (key - offset) * v.stride(2),
                             k.stride(2),
                             v.stride(2),
                             tile_end - key,
                             std::min(end - tile_end, tile_keys)};
    for (int b = 0; b < num_blocks; ++b) {
      KeyRange visible[kMaxBlockRows];
      if (masked) {
        for (int r = 0; r < blocks[b].rows; ++r) {
          const KeyRange range = rule.Range((blocks[b].first_row + r) / args.group());
          visible[r] = {std::clamp(range.begin, key, tile_end) - key,
                        std::clamp(range.end, key, tile_end) - key};
        }
      }
      ProcessBlock(BlockRows(plan.rows - blocks[b].first_row), tile, shape, blocks[b],
                   masked ? visible : nullptr, scores);
    }
    key = tile_end;
  }
}

// Merges the chunks of one kv head in order, and writes its rows.
template <typename T>
HWY_NOINLINE void WriteRows(const AttentionArgs& args, const DecodePlan& plan, int64_t head) {
  const DF d;
  const int64_t v_head_dim = args.v_head_dim();
  const int64_t chunk_floats = plan.padded_rows * plan.acc_stride;
  for (int64_t row = 0; row < plan.rows; ++row) {
    const int64_t first = head * plan.chunks;
    float* HWY_RESTRICT acc = plan.acc + first * chunk_floats + row * plan.acc_stride;
    SoftmaxState state = plan.partial[first * plan.rows + row];
    for (int64_t c = 1; c < plan.chunks; ++c) {
      const auto scales = state.Merge(plan.partial[(first + c) * plan.rows + row]);
      const VF self = hn::Set(d, scales.self), other = hn::Set(d, scales.other);
      const float* HWY_RESTRICT part = acc + c * chunk_floats;
      for (int64_t i = 0; i < v_head_dim; i += kLanes) {
        hn::Store(hn::MulAdd(hn::Load(d, part + i), other, hn::Mul(hn::Load(d, acc + i), self)), d,
                  acc + i);
      }
    }
    const VF normalizer = hn::Set(d, state.Normalizer());
    T* out = args.out.At<T>(RowOffset(args, args.out, head, row));
    for (int64_t i = 0; i < v_head_dim; i += kLanes) {
      StoreF32(hn::Mul(hn::Load(d, acc + i), normalizer), out + i,
               std::min<int64_t>(kLanes, v_head_dim - i));
    }
    if (args.lse.present()) {
      *args.lse.At<float>(RowOffset(args, args.lse, head, row)) = state.LogSumExp();
    }
  }
}

void RunDecodeTask(const AttentionArgs& args, const DecodePlan& plan, int64_t task, int worker) {
  const int64_t head = task / plan.chunks, chunk = task % plan.chunks;
  const TileShape shape = {args.head_dim(), args.v_head_dim(), plan.acc_stride, args.Scale()};
  float* q = plan.q + worker * plan.padded_rows * plan.q_stride;
  float* scores = plan.scores + worker * kScoreFloats;
  float* state = plan.state + worker * plan.padded_rows * 2 * kAcc;
  float* acc = plan.acc + task * plan.padded_rows * plan.acc_stride;

  RowBlock blocks[kMaxDecodeRows];
  int num_blocks = 0;
  for (int64_t row = 0; row < plan.rows;) {
    const int block_rows = BlockRows(plan.rows - row);
    RowBlock& block = blocks[num_blocks++];
    block = {static_cast<int>(std::min<int64_t>(block_rows, plan.rows - row)),
             static_cast<int>(row),
             q + row * plan.q_stride,
             acc + row * plan.acc_stride,
             state + row * 2 * kAcc,
             state + row * 2 * kAcc + kAcc};
    DispatchFloat(args.q.dtype, [&]<typename T>() {
      PackRows<T>(args, head, row, block_rows, plan.rows, q + row * plan.q_stride);
    });
    std::fill_n(block.max, kAcc, kNegInf);
    std::fill_n(block.sum, kAcc, 0.0f);
    std::fill_n(block.acc, block_rows * plan.acc_stride, 0.0f);
    row += block_rows;
  }

  const int64_t begin = plan.any.begin + chunk * plan.chunk;
  const int64_t end = std::min(begin + plan.chunk, plan.any.end);
  const int64_t cached = args.cache_len();
  if (begin < std::min(end, cached)) {
    DispatchFloat(args.k.dtype, [&]<typename T>() {
      ProcessSource<T>(args, plan, args.k, args.v, 0, head, begin, std::min(end, cached), shape,
                       blocks, num_blocks, scores);
    });
  }
  if (std::max(begin, cached) < end) {
    DispatchFloat(args.k_new.dtype, [&]<typename T>() {
      ProcessSource<T>(args, plan, args.k_new, args.v_new, cached, head, std::max(begin, cached),
                       end, shape, blocks, num_blocks, scores);
    });
  }

  for (int b = 0; b < num_blocks; ++b) {
    const RowBlock& block = blocks[b];
    const int block_rows = BlockRows(plan.rows - block.first_row);
    for (int r = 0; r < block.rows; ++r) {
      float sum = 0.0f;
      for (int lane = r; lane < kAcc; lane += block_rows) sum += block.sum[lane];
      plan.partial[task * plan.rows + block.first_row + r] = {block.max[r], sum};
    }
  }
  // The last to finish sees every chunk's results.
  if (plan.finished[head].fetch_add(1, std::memory_order_acq_rel) == plan.chunks - 1) {
    DispatchFloat(args.out.dtype, [&]<typename T>() { WriteRows<T>(args, plan, head); });
  }
}

absl::Status RunDecode(const KernelContext& context, const AttentionArgs& args) {
  if (args.out.empty() && (!args.lse.present() || args.lse.empty())) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  const DecodePlan plan = MakePlan(args, pool.size(), *context.workspace);
  if (!context.workspace->ok()) return absl::InternalError("attention: workspace too small");
  for (int64_t i = 0; i < plan.heads; ++i) new (&plan.finished[i]) std::atomic<int64_t>(0);
  const int64_t row_bytes = ByteOffset(args.k.dtype, args.head_dim() + args.v_head_dim());
  pool.ParallelFor(
      plan.heads * plan.chunks,
      [&](int64_t task, int worker) { RunDecodeTask(args, plan, task, worker); },
      plan.heads * (plan.any.end - plan.any.begin) * row_bytes);
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

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckPlain(args));
  TANDEM_RETURN_IF_ERROR(CheckContiguousRows(args));
  if (args.q_len() > kMaxDecodeQueries) {
    return Unimplemented("at most ", kMaxDecodeQueries, " queries per sequence, got ",
                         args.q_len());
  }
  if (args.group() * args.q_len() > kMaxDecodeRows) {
    return Unimplemented("at most ", kMaxDecodeRows, " query rows per key/value head, got ",
                         args.group() * args.q_len());
  }
  return absl::OkStatus();
}

}  // namespace

Kernel<AttentionArgs> AttentionDecode(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {"decode_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>,
              N_AVX3::DecodeWorkspaceBytes, N_AVX3::RunDecode};
    case Isa::kAvx2:
      return {"decode_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, N_AVX2::DecodeWorkspaceBytes,
              N_AVX2::RunDecode};
    default:
      return {"decode_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>,
              TANDEM_N_SCALAR::DecodeWorkspaceBytes, TANDEM_N_SCALAR::RunDecode};
  }
}

}  // namespace tandem::cpu

#endif  // HWY_ONCE
