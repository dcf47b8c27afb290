// What decode attention does to a tile of scores [key][row] between the product with q and softmax:
// soft cap, ALiBi, bias, the scales of an i8 cache, and hiding what a row does not see. None of it
// touches memory beyond the first-level cache, but for the bias itself.
#if defined(TANDEM_CPU_ATTENTION_DECODE_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_SCORES_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_SCORES_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_SCORES_INL_H_
#endif

#include <cstdint>

#include "core/dtype.h"
#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "cpu/attention_decode_keys-inl.h"
#include "cpu/attention_decode_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Which steps a call needs.
struct ScoreRules {
  float q_scale;  // goes into q (or scores): scale, divided by the soft cap if there is one
  float softcap;  // 0: none
  bool alibi, bias;
  bool any;
};

inline ScoreRules MakeScoreRules(const AttentionArgs& args) {
  ScoreRules rules = {args.Scale(), args.softcap, args.alibi_slopes.present(), args.bias.present(),
                      false};
  if (rules.softcap > 0.0f) rules.q_scale /= rules.softcap;
  rules.any = rules.softcap > 0.0f || rules.alibi || rules.bias;
  return rules;
}

// values[key][row] *= scale[key]; scale has a whole vector behind the last key.
template <int RT>
HWY_NOINLINE void ScaleByKey(const float* HWY_RESTRICT scale, int64_t keys,
                             float* HWY_RESTRICT values) {
  constexpr int W = BlockLayout<RT>::kWidth;
  const DF d;
  HWY_ALIGN int32_t key_of_lane[kLanes];
  for (int i = 0; i < kLanes; ++i) key_of_lane[i] = i / RT;
  const auto index = hn::SetTableIndices(d, key_of_lane);
  for (int64_t key = 0; key < keys; key += W) {
    const VF factor = hn::TableLookupLanes(hn::LoadU(d, scale + key), index);
    hn::Store(hn::Mul(hn::Load(d, values + key * RT), factor), d, values + key * RT);
  }
}

// Scores of the rows first_row .. first_row + real - 1 and of keys from position `first_key` on.
template <int RT>
HWY_NOINLINE void ModifyScores(const AttentionArgs& args, const ScoreRules& rules,
                               const DecodeRows& rows, int first_row, int real, int64_t first_key,
                               int64_t keys, float* HWY_RESTRICT scores) {
  constexpr int W = BlockLayout<RT>::kWidth;
  const DF d;
  if (rules.softcap > 0.0f) {
    const VF cap = hn::Set(d, rules.softcap);
    for (int64_t key = 0; key < keys; key += W) {
      hn::Store(hn::Mul(cap, Tanh(hn::Load(d, scores + key * RT))), d, scores + key * RT);
    }
  }
  if (rules.alibi) {
    HWY_ALIGN float slopes[kLanes] = {}, distances[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane % RT >= real) continue;
      const int64_t row = first_row + lane % RT;
      slopes[lane] = *args.alibi_slopes.At<float>(rows.Head(row) * args.alibi_slopes.stride(0));
      distances[lane] = static_cast<float>(rows.sequence.rule.Position(rows.Query(row)) -
                                           (first_key + lane / RT));
    }
    const VF slope = hn::Load(d, slopes), distance = hn::Load(d, distances);
    for (int64_t key = 0; key < keys; key += W) {
      const VF away = hn::Abs(hn::Sub(distance, hn::Set(d, static_cast<float>(key))));
      hn::Store(hn::NegMulAdd(slope, away, hn::Load(d, scores + key * RT)), d, scores + key * RT);
    }
  }
  if (rules.bias) {
    const int64_t stride = ColumnStride(args.bias);
    DispatchFloat(args.bias.dtype, [&]<typename T>() {
      for (int r = 0; r < real; ++r) {
        const T* bias =
            args.bias.At<T>(rows.BroadcastOffset(args.bias, first_row + r) + first_key * stride);
        for (int64_t key = 0; key < keys; ++key) {
          scores[key * RT + r] += ToFloat(bias[key * stride]);
        }
      }
    });
  }
}

// -inf where row r does not see a key.
template <int RT>
HWY_NOINLINE void HideScores(const uint64_t* HWY_RESTRICT visible, int real, int64_t keys,
                             float* HWY_RESTRICT scores) {
  for (int r = 0; r < real; ++r) {
    for (uint64_t hidden = ~visible[r] & BitRange(0, keys); hidden != 0; hidden &= hidden - 1) {
      scores[__builtin_ctzll(hidden) * RT + r] = kNegInf;
    }
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
