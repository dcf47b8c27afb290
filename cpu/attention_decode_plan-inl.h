// How one call of decode attention is cut into chunks of keys, and where its scratch lies. Compiled
// once per target; the algorithm is described in attention_decode.cc.
#if defined(TANDEM_CPU_ATTENTION_DECODE_PLAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_PLAN_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_PLAN_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_PLAN_INL_H_
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "core/workspace.h"
#include "cpu/attention_decode_int8-inl.h"
#include "cpu/attention_decode_keys-inl.h"
#include "cpu/attention_decode_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// How one call is cut up, and where its scratch lies.
struct DecodePlan {
  int64_t rows;         // query rows per kv head, the most of any sequence
  int64_t padded_rows;  // room for the last block
  int64_t q_stride;     // packed floats per row
  int64_t acc_stride;   // Dv in whole vectors
  int64_t chunk;        // keys per chunk
  int64_t chunks;       // per kv head, the most of any sequence
  int64_t heads;        // B * Hkv
  int64_t keys;         // visible ones of all sequences
  int workers;
  bool fetch_into_second_level;  // see Fetcher; speed only
  DecodeRows alike;              // of the first sequence; unless the batch is ragged, of all

  // Per worker.
  float* q;          // [padded_rows * q_stride]
  float* unpacked;   // [kMaxBlockRows * q_stride]
  float* scores;     // [2][padded_rows][kTileKeys]
  float* state;      // [padded_rows][2][kLanes]
  char* tiles;       // [kRing][kTileBytes]
  int64_t* fetched;  // the task whose first keys this worker has fetched; speed only
  // Zeros, a row of V.
  char* zeros;
  float* task_acc;  // [padded_rows][acc_stride]
  // Per worker, i8 caches only: a tile as integer dot products take it.
  uint8_t* staged;  // [staged_bytes]
  int64_t staged_bytes;
  // Per (batch, kv head, chunk), if there are several chunks.
  float* acc;  // [rows][acc_stride]
  // Per (batch, kv head, chunk).
  SoftmaxState* partial;  // [rows]
  // Per (batch, kv head).
  std::atomic<int64_t>* finished;
};

inline int64_t RoundUp(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Tiles: being finished, being scored, being fetched.
constexpr int64_t kRing = 3;
constexpr int64_t kTileBytes = (sizeof(KeyTile<int8_t>) + 63) / 64 * 64;
static_assert(sizeof(KeyTile<float>) <= sizeof(KeyTile<int8_t>));

// At least 256 keys per chunk, and no more tasks than keep the memory of a large machine busy: a
// task costs 1000 to 3000 cycles beyond its keys (Zen 5; 256 keys of 8 rows x 64 take 11000), most
// of it when its partial results have to come from memory. A function of the problem alone; if the
// result of a sequence must not depend on the others, of nothing.
inline int64_t ChunkKeys(int64_t keys, int64_t heads, bool batch_invariant) {
  constexpr int64_t kMinChunk = 256, kFixedChunk = 512;
  if (batch_invariant) return kFixedChunk;
  constexpr int64_t kTasks = 64;
  const int64_t chunks = std::clamp<int64_t>(kTasks / heads, 1, 64);
  return std::max(kMinChunk, RoundUp((keys + chunks - 1) / chunks, kTileKeys));
}

inline DecodePlan MakePlan(const AttentionArgs& args, int workers, Workspace& workspace) {
  DecodePlan plan = {};
  plan.workers = workers;
  plan.heads = args.batch() * args.kv_heads();
  int64_t longest = 0;
  const int64_t different = args.ragged() ? args.batch() : std::min<int64_t>(args.batch(), 1);
  for (int64_t b = 0; b < different; ++b) {
    const DecodeRows rows = MakeDecodeRows(args, b);
    if (b == 0) plan.alike = rows;
    plan.rows = std::max(plan.rows, rows.rows);
    longest = std::max(longest, rows.any.end - rows.any.begin);
    plan.keys += (rows.any.end - rows.any.begin) * args.kv_heads();
  }
  if (!args.ragged()) plan.keys *= args.batch();
  plan.padded_rows = plan.rows + kMaxBlockRows;
  plan.q_stride = RoundUp(args.head_dim(), kLanes) * 2;
  plan.acc_stride = std::max<int64_t>(RoundUp(args.v_head_dim(), kLanes), kLanes);
  plan.chunk = ChunkKeys(longest, std::max<int64_t>(plan.heads, 1), args.batch_invariant);
  plan.chunks = std::max<int64_t>(1, (longest + plan.chunk - 1) / plan.chunk);
  const int64_t tasks = plan.heads * plan.chunks;
  plan.q = workspace.Take<float>(workers * plan.padded_rows * plan.q_stride);
  plan.unpacked = workspace.Take<float>(workers * kMaxBlockRows * plan.q_stride);
  plan.scores = workspace.Take<float>(workers * 2 * plan.padded_rows * kTileKeys);
  plan.state = workspace.Take<float>(workers * plan.padded_rows * 2 * kLanes);
  plan.tiles = workspace.Take<char>(workers * kRing * kTileBytes);
  plan.fetched = workspace.Take<int64_t>(workers);
  plan.zeros = workspace.Take<char>(plan.acc_stride * static_cast<int64_t>(sizeof(float)));
  plan.task_acc = workspace.Take<float>(workers * plan.padded_rows * plan.acc_stride);
  if (args.k.dtype == DType::kI8) {
    plan.staged_bytes = StagedTileBytes(std::max(args.head_dim(), args.v_head_dim()));
  }
  plan.staged = workspace.Take<uint8_t>(workers * plan.staged_bytes);
  plan.acc = workspace.Take<float>(plan.chunks > 1 ? tasks * plan.rows * plan.acc_stride : 0);
  plan.partial = workspace.Take<SoftmaxState>(tasks * plan.rows);
  plan.finished = workspace.Take<std::atomic<int64_t>>(plan.heads);
  return plan;
}

// Head number `head` of B * Hkv.
inline DecodeRows RowsOfHead(const AttentionArgs& args, const DecodePlan& plan, int64_t head) {
  const int64_t batch = head / args.kv_heads();
  DecodeRows rows = args.ragged() ? MakeDecodeRows(args, batch) : plan.alike;
  rows.batch = batch;
  if (!args.ragged()) rows.sequence.q_batch = batch;
  rows.kv_head = head % args.kv_heads();
  return rows;
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
