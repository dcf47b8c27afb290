// The steps of a decode task that are taken tile by tile: scores of a tile, softmax, weighted
// values, for all rows of the task, each by the products that its kernel computes with.
#if defined(TANDEM_CPU_ATTENTION_DECODE_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_STEPS_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_STEPS_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_STEPS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/ops/attention.h"
#include "cpu/attention_decode_int8-inl.h"
#include "cpu/attention_decode_keys-inl.h"
#include "cpu/attention_decode_pairs-inl.h"
#include "cpu/attention_decode_plan-inl.h"
#include "cpu/attention_decode_scores-inl.h"
#include "cpu/attention_decode_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// How products are computed.
enum class Products {
  kFloat,  // multiply-adds in f32
  kPairs,  // bf16 dot products: q, the cache and new keys are bf16
  kInt8,   // integer dot products: the cache is i8
};

// The query rows of one block and what has been computed for them.
struct RowBlock {
  int rows;        // real ones; the others are zero and ignored
  int padded;      // 1, 2, 4 or 8; kInt8: 4 or 8
  int first_row;   // index of the first among the rows of the kv head
  const float* q;  // see PackBlock
  float* acc;      // [padded][acc_stride]
  float* max;      // [kLanes], see Softmax
  float* sum;      // [kLanes]
  float* scores;   // [2][kTileKeys][padded]
  float steps[8];  // kInt8: of the rows of q
};

// What the steps of one task share.
struct DecodeTask {
  const AttentionArgs* args;
  const DecodePlan* plan;
  DecodeRows rows;
  RowBlock* blocks;
  int num_blocks;
  ScoreRules rules;
  uint8_t* staged;  // kInt8
};

// Rows of the block that starts at `row`: the least power of two that holds what is left, up to 8.
int BlockRows(int64_t rows_left) {
  if (rows_left > 4 && kMaxBlockRows >= 8) return 8;
  if (rows_left > 2 && kMaxBlockRows >= 4) return 4;
  return static_cast<int>(std::min<int64_t>(rows_left, std::min(2, kMaxBlockRows)));
}

// Calls fn<RT>() for the block sizes that this target has.
template <typename Fn>
HWY_INLINE void DispatchRows(int rows, Fn&& fn) {
  switch (rows) {
    case 1:
      return fn.template operator()<1>();
    case 2:
      if constexpr (kMaxBlockRows >= 2) return fn.template operator()<2>();
      break;
    case 4:
      if constexpr (kMaxBlockRows >= 4) return fn.template operator()<4>();
      break;
    default:
      if constexpr (kMaxBlockRows >= 8) return fn.template operator()<8>();
  }
}

// Rows of q of one block, times `scale`, as Scores reads them; rows beyond the last are zero.
template <Products kHow>
void PackRows(const AttentionArgs& args, const DecodeRows& rows, RowBlock& block, float scale,
              float* HWY_RESTRICT unpacked, int64_t stride, float* HWY_RESTRICT out) {
  const int64_t head_dim = args.head_dim();
  DispatchFloat(args.q.dtype, [&]<typename T>() HWY_ATTR {
    const DF d;
    for (int r = 0; r < block.padded; ++r) {
      const bool real = r < block.rows;
      const T* row = real ? args.q.At<T>(rows.Offset(args.q, block.first_row + r)) : nullptr;
      for (int64_t i = 0; i * kLanes < head_dim; ++i) {
        const VF x = real ? LoadF32Part(row, i, head_dim) : hn::Zero(d);
        hn::Store(hn::Mul(x, hn::Set(d, scale)), d, unpacked + r * stride + i * kLanes);
      }
    }
  });
  DispatchRows(block.padded, [&]<int RT>() {
    if constexpr (kHow == Products::kInt8) {
      if constexpr (RT >= 4) PackRowsInt8<RT>(unpacked, stride, head_dim, out, block.steps);
    } else {
      constexpr bool kPairs = kHow == Products::kPairs;
      if constexpr (kPairs) RowsToPairs<RT>(unpacked, stride, head_dim);
      PackBlock<RT>(unpacked, stride, kPairs ? (head_dim + 1) / 2 : head_dim, out);
    }
  });
}

// Keys per tile: about 16 KB of K, so that the K or V worked on and what is fetched meanwhile fit
// the first-level cache (8 KB: 0.92 of the speed from memory, f16, heads of 128, Zen 5); whole
// groups.
int64_t TileKeys(int64_t row_bytes) {
  return std::clamp<int64_t>(RoundUp(16384 / row_bytes, kKeyGroup), kKeyGroup, kTileKeys);
}

template <typename T, Products kHow>
void ScoreTile(const DecodeTask& task, const KeyTile<T>& tile, int64_t buffer, Fetcher<T> ahead) {
  const int64_t head_dim = task.args->head_dim();
  if constexpr (kHow == Products::kInt8) StageKeys(tile.k, tile.keys, head_dim, task.staged);
  for (int b = 0; b < task.num_blocks; ++b) {
    const RowBlock& block = task.blocks[b];
    DispatchRows(block.padded, [&]<int RT>() {
      float* scores = block.scores + buffer * kTileKeys * RT;
      if constexpr (kHow != Products::kInt8) {
        Scores<T, RT, kHow == Products::kPairs>(tile.k, tile.keys, head_dim, block.q,
                                                task.rules.q_scale, scores, ahead);
      } else if constexpr (RT >= 4) {
        const auto run = [&]<int kStride>() {
          ScoresInt8<RT, kStride>(task.staged, tile.keys, RoundUp(head_dim, kStagedBytes), block.q,
                                  block.steps, scores, ahead);
        };
        switch (RoundUp(head_dim, kStagedBytes)) {
          case 64:
            return run.template operator()<64>();
          case 128:
            return run.template operator()<128>();
          default:
            return run.template operator()<0>();
        }
      }
    });
  }
  ahead.FetchRest();
}

// acc of row r += weight * value, for keys that are not for all rows.
template <typename T>
HWY_NOINLINE void AddApart(const DecodeTask& task, const KeyWalk<T>& walk, const KeyTile<T>& tile,
                           const RowBlock& block, const float* weights) {
  const DF d;
  const int64_t n = task.args->v_head_dim();
  for (uint64_t left = tile.apart; left != 0; left &= left - 1) {
    const int64_t key = __builtin_ctzll(left);
    const T* value = walk.Value(tile, key);
    for (int r = 0; r < block.rows; ++r) {
      if ((tile.visible[block.first_row + r] >> key & 1) == 0) continue;
      float weight = weights[key * block.padded + r];
      // Of an i8 value it is the scale that is not finite, and it has made the weight 0.
      if constexpr (std::is_same_v<T, int8_t>) weight = walk.ValueScale(tile, key);
      float* acc = block.acc + r * task.plan->acc_stride;
      for (int64_t i = 0; i * kLanes < n; ++i) {
        hn::Store(
            hn::MulAdd(hn::Set(d, weight), LoadF32Part(value, i, n), hn::Load(d, acc + i * kLanes)),
            d, acc + i * kLanes);
      }
    }
  }
}

// Scores of a tile become weights, and the values they weigh are added up.
template <typename T, Products kHow>
void FinishTile(const DecodeTask& task, const KeyWalk<T>& walk, const KeyTile<T>& tile,
                int64_t buffer, Fetcher<T> ahead) {
  const int64_t v_head_dim = task.args->v_head_dim();
  if constexpr (kHow == Products::kInt8) StageValues(tile.v, tile.keys, v_head_dim, task.staged);
  for (int b = 0; b < task.num_blocks; ++b) {
    const RowBlock& block = task.blocks[b];
    DispatchRows(block.padded, [&]<int RT>() {
      float* scores = block.scores + buffer * kTileKeys * RT;
      if constexpr (std::is_same_v<T, int8_t>) ScaleByKey<RT>(tile.k_scale, tile.keys, scores);
      if (task.rules.any) {
        ModifyScores<RT>(*task.args, task.rules, task.rows, block.first_row, block.rows, tile.key,
                         tile.keys, scores);
      }
      std::fill(scores + tile.keys * RT, scores + RoundUp(tile.keys * RT, kLanes), kNegInf);
      if (tile.masked) {
        HideScores<RT>(tile.visible + block.first_row, block.rows, tile.keys, scores);
      }
      HWY_ALIGN float factor[kLanes];
      Softmax<RT>(scores, tile.keys, block.max, block.sum, factor);
      if constexpr (std::is_same_v<T, int8_t>) ScaleByKey<RT>(tile.v_scale, tile.keys, scores);
      if constexpr (kHow == Products::kInt8) {
        if constexpr (RT >= 4) {
          ValuesInt8<RT>(task.staged, tile.keys, v_head_dim, scores, factor, block.acc,
                         task.plan->acc_stride, ahead);
        }
      } else if constexpr (kHow == Products::kPairs) {
        ValuesPairs<RT>(tile.v, tile.keys, v_head_dim, scores, factor, block.acc,
                        task.plan->acc_stride, ahead);
      } else {
        Values<T, RT>(tile.v, tile.keys, v_head_dim, scores, factor, block.acc,
                      task.plan->acc_stride, ahead);
      }
      if (tile.apart != 0) AddApart(task, walk, tile, block, scores);
    });
  }
  ahead.FetchRest();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
