#include "cpu/attention_prefill_plan.h"

#include <algorithm>
#include <cstdint>

namespace tandem::cpu {
namespace {

// Below this many tasks the keys are cut as well: cores of a large machine.
constexpr int64_t kEnoughTasks = 64;
// Least keys of a piece. Writing and merging its partial result costs as much as about 16 keys.
constexpr int64_t kPieceKeys = 512;

int64_t CeilDiv(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Large tiles spread the packing of K and V over more rows, small ones give more threads work.
int64_t TileRows(int64_t rows, int64_t heads, bool batch_invariant) {
  constexpr int64_t kSmall = 96, kLarge = 192;  // multiples of 6 and 32
  if (rows <= kSmall || batch_invariant) return kSmall;
  return rows * heads >= kLarge * 64 ? kLarge : kSmall;
}

}  // namespace

KeyRange VisibleExtent(const MaskRule& rule, int64_t first_query, int64_t last_query) {
  if (first_query > last_query) return {0, 0};
  const int64_t end = rule.Range(last_query).end;
  // The range of a query that sees nothing may begin before the padding ends.
  const int64_t begin = std::max(rule.Range(first_query).begin, rule.FirstKey());
  return {std::min(begin, end), end};
}

PrefillPlan MakePrefillPlan(const AttentionArgs& args, PrefillProducts how, int64_t workers,
                            Workspace& workspace) {
  PrefillPlan plan = {};
  plan.group = args.group();
  plan.kv_heads = args.kv_heads();
  const bool pairs = how != PrefillProducts::kFloat;
  plan.k_depth = pairs ? CeilDiv(args.head_dim(), 2) : args.head_dim();
  if (how == PrefillProducts::kTiles) plan.k_depth = RoundUpTo(plan.k_depth, 16);
  plan.v_depth = pairs ? kPrefillKeyTile / 2 : kPrefillKeyTile;
  const bool packed_queries = args.q_offsets.present();
  const int64_t rows = plan.group * args.q_len();
  const int64_t batch = args.batch();
  plan.tile_rows =
      TileRows(rows, (packed_queries ? 1 : batch) * plan.kv_heads, args.batch_invariant);
  const int64_t row_tiles = CeilDiv(rows, plan.tile_rows);
  const int64_t tiles = packed_queries ? row_tiles + batch : batch * row_tiles;
  plan.q_stride = RoundUpTo(plan.k_depth, 16);
  plan.acc_stride = std::max(RoundUpTo(args.v_head_dim(), kPrefillPanel), kPrefillPanel);

  const int64_t tasks = std::max<int64_t>(tiles * plan.kv_heads, 1);
  plan.max_pieces = args.batch_invariant ? 1
                                         : std::clamp<int64_t>(args.kv_len() / kPieceKeys, 1,
                                                               CeilDiv(kEnoughTasks, tasks));
  plan.max_tiles = tiles * plan.max_pieces;
  plan.tiles = workspace.Take<PrefillTile>(plan.max_tiles);
  if (plan.max_pieces > 1) {
    const int64_t partial_rows = plan.max_tiles * plan.kv_heads * plan.tile_rows;
    plan.partial_acc = workspace.Take<float>(partial_rows * plan.acc_stride);
    plan.partial_max = workspace.Take<float>(partial_rows);
    plan.partial_sum = workspace.Take<float>(partial_rows);
  }

  if (row_tiles > 1 && !args.batch_invariant) {
    const int64_t tile_bytes =
        (plan.k_floats() + plan.v_floats()) * static_cast<int64_t>(sizeof(float));
    plan.max_head_packed =
        std::min(kSharedHeadBytes / tile_bytes,
                 KeyTiles::Tiles(args.cache_len()) + KeyTiles::Tiles(args.new_len()));
    const int64_t fit = kSharedBytes / (tile_bytes * plan.kv_heads);
    plan.max_packed = plan.max_head_packed <= fit / batch ? plan.max_head_packed * batch : fit;
    plan.packed = workspace.Take<PackedTile>(plan.max_packed);
    plan.first_packed = workspace.Take<int64_t>(batch);
    plan.packed_k = workspace.Take<float>(plan.max_packed * plan.kv_heads * plan.k_floats());
    plan.packed_v = workspace.Take<float>(plan.max_packed * plan.kv_heads * plan.v_floats());
    plan.packed_finite = workspace.Take<bool>(plan.max_packed * plan.kv_heads);
  }

  const int64_t tile_rows = workers * plan.tile_rows;
  plan.scratch.q = workspace.Take<float>(tile_rows * plan.q_stride);
  plan.scratch.scores = workspace.Take<float>(tile_rows * kPrefillKeyTile);
  plan.scratch.acc = workspace.Take<float>(tile_rows * plan.acc_stride);
  plan.scratch.k = workspace.Take<float>(workers * plan.k_floats());
  plan.scratch.v = workspace.Take<float>(workers * plan.v_floats());
  plan.scratch.sum = workspace.Take<float>(tile_rows * 16);
  plan.scratch.max = workspace.Take<float>(tile_rows);
  plan.scratch.next_max = workspace.Take<float>(tile_rows);
  plan.scratch.factor = workspace.Take<float>(tile_rows);
  plan.scratch.visible = workspace.Take<KeyRange>(tile_rows);
  plan.scratch.begin = workspace.Take<int32_t>(tile_rows);
  plan.scratch.end = workspace.Take<int32_t>(tile_rows);
  plan.scratch.bits = workspace.Take<uint32_t>(tile_rows * (kPrefillKeyTile / 32));
  plan.scratch.block_begin = workspace.Take<int32_t>(tile_rows / kPrefillRowBlock);
  plan.scratch.block_end = workspace.Take<int32_t>(tile_rows / kPrefillRowBlock);
  plan.scratch.started = workspace.Take<bool>(tile_rows / kPrefillRowBlock);
  return plan;
}

PrefillScratch OfWorker(const PrefillPlan& plan, int worker) {
  PrefillScratch s = plan.scratch;
  const int64_t row = worker * plan.tile_rows;
  s.q += row * plan.q_stride;
  s.scores += row * kPrefillKeyTile;
  s.acc += row * plan.acc_stride;
  s.k += worker * plan.k_floats();
  s.v += worker * plan.v_floats();
  s.sum += row * 16;
  s.max += row;
  s.next_max += row;
  s.factor += row;
  s.visible += row;
  s.begin += row;
  s.end += row;
  s.bits += row * (kPrefillKeyTile / 32);
  s.block_begin += row / kPrefillRowBlock;
  s.block_end += row / kPrefillRowBlock;
  s.started += row / kPrefillRowBlock;
  return s;
}

void PlanTiles(const AttentionArgs& args, PrefillPlan& plan) {
  const int64_t batch = args.batch();
  plan.tile_count = 0;
  int64_t slots = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const MaskRule rule = args.Sequence(b).rule;
    const int64_t rows = plan.group * rule.q_len;
    for (int64_t first = 0; first < rows; first += plan.tile_rows) {
      const int64_t count = std::min(plan.tile_rows, rows - first);
      const KeyRange seen =
          VisibleExtent(rule, first / plan.group, (first + count - 1) / plan.group);
      const int64_t keys = seen.end - seen.begin;
      const int64_t pieces = std::clamp<int64_t>(keys / kPieceKeys, 1, plan.max_pieces);
      const int64_t piece_keys = RoundUpTo(CeilDiv(keys, pieces), kPrefillKeyTile);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begin = std::min(seen.begin + piece * piece_keys, seen.end);
        const int64_t end = std::min(begin + piece_keys, seen.end);
        plan.tiles[plan.tile_count++] = {b, first, count, begin, end, slots, pieces, piece};
      }
      if (pieces > 1) slots += pieces;
    }
  }
  std::sort(plan.tiles, plan.tiles + plan.tile_count,
            [](const PrefillTile& a, const PrefillTile& b) {
              const int64_t a_keys = a.key_end - a.key_begin, b_keys = b.key_end - b.key_begin;
              if (a_keys != b_keys) return a_keys > b_keys;
              if (a.sequence != b.sequence) return a.sequence < b.sequence;
              if (a.first != b.first) return a.first < b.first;
              return a.piece < b.piece;
            });

  plan.packed_count = 0;
  for (int64_t b = 0; b < batch && plan.max_packed > 0; ++b) {
    const AttentionSequence sequence = args.Sequence(b);
    const KeyRange seen = VisibleExtent(sequence.rule, 0, sequence.rule.q_len - 1);
    const KeyTiles tiles(seen.begin, seen.end, sequence.cache_len);
    const bool fits = tiles.count() <= plan.max_head_packed &&
                      tiles.count() <= plan.max_packed - plan.packed_count;
    plan.first_packed[b] = fits ? plan.packed_count : -1;
    for (int64_t tile = 0; fits && tile < tiles.count(); ++tile) {
      plan.packed[plan.packed_count++] = {b, tiles.Keys(tile)};
    }
  }
}

}  // namespace tandem::cpu
