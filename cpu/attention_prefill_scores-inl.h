// What attention does to the scores of prefill beside scaling them, one row of one key tile at a
// time: the modifiers (soft cap, ALiBi, additive bias), as functors applied one after the other to
// a row that lies in the first-level cache, and the visibility bits (boolean mask, packed mask,
// bias of -inf). Compiled once per target; used only if an argument asks for any of it.
//
// Cost, for 1024 tokens of 32/8 heads x 128 (Zen 5): soft cap 10 %, ALiBi 3 %, a bias or mask that
// the heads share 3 to 10 %.
#if defined(TANDEM_CPU_ATTENTION_PREFILL_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_PREFILL_SCORES_INL_H_
#undef TANDEM_CPU_ATTENTION_PREFILL_SCORES_INL_H_
#else
#define TANDEM_CPU_ATTENTION_PREFILL_SCORES_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "cpu/attention_prefill_plan.h"
#include "cpu/attention_simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

inline constexpr int64_t kBitWords = kPrefillKeyTile / 32;

// ---- Modifiers

// A bias or mask, with stride 0 where it is broadcast. (The words of a packed mask are not, but if
// there is only one its stride does not matter.)
struct BroadcastView {
  explicit BroadcastView(const TensorView& v) : view(&v) {
    for (int axis = 0; axis < v.rank(); ++axis)
      stride[axis] = v.dim(axis) == 1 ? 0 : v.stride(axis);
  }
  int64_t Row(int64_t batch, int64_t head, int64_t query) const {
    return batch * stride[0] + head * stride[1] + query * stride[2];
  }
  const TensorView* view;
  int64_t stride[4] = {};
};

struct Scaled {
  float scale;
  HWY_INLINE VF operator()(VF score, int64_t) const { return hn::Mul(score, hn::Set(DF(), scale)); }
};

struct SoftCap {
  VF cap, inverse;
  HWY_INLINE VF operator()(VF score, int64_t) const {
    return hn::Mul(cap, Tanh(hn::Mul(score, inverse)));
  }
};

struct Alibi {
  VF slope, distance;  // distance: of the query from the first key of the tile
  HWY_INLINE VF operator()(VF score, int64_t i) const {
    const DF d;
    const VF key = hn::Iota(d, static_cast<float>(i));
    return hn::NegMulAdd(slope, hn::Abs(hn::Sub(distance, key)), score);
  }
};

template <typename T>
struct Bias {
  const T* row;    // at the first key of the tile
  int64_t stride;  // from key to key
  int64_t keys;    // of the tile

  // Of keys i .. i + kLanes - 1 of the tile; 0 beyond its keys.
  HWY_INLINE VF Load(int64_t i) const {
    const DF d;
    if (stride == 1) {
      return i + kLanes <= keys ? LoadF32(row + i)
                                : LoadF32Tail(row + i, static_cast<int>(keys - i));
    }
    if (stride == 0) return hn::Set(d, ToFloat(row[0]));
    HWY_ALIGN float x[kLanes] = {};
    for (int64_t j = i; j < std::min<int64_t>(i + kLanes, keys); ++j) {
      x[j - i] = ToFloat(row[j * stride]);
    }
    return hn::Load(d, x);
  }
  HWY_INLINE VF operator()(VF score, int64_t i) const { return hn::Add(score, Load(i)); }
};

// Applies a modifier to the vectors of scores [begin, end), whole vectors.
template <class Modifier>
HWY_INLINE void ModifyRow(float* HWY_RESTRICT scores, int64_t begin, int64_t end,
                          const Modifier& modifier) {
  const DF d;
  for (int64_t i = begin; i < end; i += kLanes) {
    hn::Store(modifier(hn::Load(d, scores + i), i), d, scores + i);
  }
}

// ---- Visibility bits of a row: bit j of the words is key j of the tile.

HWY_INLINE void RangeBits(int64_t begin, int64_t end, uint32_t* HWY_RESTRICT bits) {
  for (int64_t w = 0; w < kBitWords; ++w) {
    const int64_t low = std::clamp<int64_t>(begin - 32 * w, 0, 32);
    const int64_t high = std::clamp<int64_t>(end - 32 * w, 0, 32);
    bits[w] = static_cast<uint32_t>(((uint64_t{1} << high) - 1) & ~((uint64_t{1} << low) - 1));
  }
}

// bits &= keys [key, key + keys) of a row of a packed mask; reads no word beyond those keys.
inline void AndPackedMask(const uint32_t* HWY_RESTRICT words, int64_t stride, int64_t key,
                          int64_t keys, uint32_t* HWY_RESTRICT bits) {
  for (int64_t w = 0; 32 * w < keys; ++w) {
    const int64_t first = key + 32 * w, last = key + std::min(32 * w + 32, keys) - 1;
    uint32_t word = words[first / 32 * stride] >> (first % 32);
    if (last / 32 != first / 32) word |= words[last / 32 * stride] << (32 - first % 32);
    bits[w] &= word;
  }
}

// bits &= bytes of a boolean mask, at the first key of the tile.
inline void AndBoolMask(const uint8_t* HWY_RESTRICT bytes, int64_t stride, int64_t keys,
                        uint32_t* HWY_RESTRICT bits) {
  for (int64_t w = 0; 32 * w < keys; ++w) {
    uint32_t word = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
    if (stride == 1 && 32 * w + 32 <= keys) {
      const hn::CappedTag<uint8_t, 32> d8;
      const auto set = hn::Ne(hn::LoadU(d8, bytes + 32 * w), hn::Zero(d8));
      uint8_t packed[8] = {};
      hn::StoreMaskBits(d8, set, packed);
      std::memcpy(&word, packed, sizeof word);
      bits[w] &= word;
      continue;
    }
#endif
    for (int64_t j = 0; j < std::min<int64_t>(32, keys - 32 * w); ++j) {
      word |= uint32_t{bytes[(32 * w + j) * stride] != 0} << j;
    }
    bits[w] &= word;
  }
}

// bits &= the bias is not -inf.
template <typename T>
HWY_INLINE void AndBias(const Bias<T>& bias, uint32_t* HWY_RESTRICT bits) {
  const DF d;
  for (int64_t i = 0; i < bias.keys; i += kLanes) {
    uint8_t packed[8] = {};
    hn::StoreMaskBits(d, hn::Ne(bias.Load(i), hn::Set(d, kNegInf)), packed);
    uint16_t set;
    std::memcpy(&set, packed, sizeof set);
    // Keys outside these lanes stay as they are.
    constexpr uint32_t kLaneBits = (uint32_t{1} << kLanes) - 1;
    bits[i / 32] &= ~(kLaneBits << (i % 32)) | static_cast<uint32_t>(set & kLaneBits) << (i % 32);
  }
}

// Scores [begin, end), whole vectors, of keys whose bit is not set become -inf.
HWY_INLINE void MaskRowByBits(float* HWY_RESTRICT scores, int64_t begin, int64_t end,
                              const uint32_t* HWY_RESTRICT bits) {
  const DF d;
  const VF neg_inf = hn::Set(d, kNegInf);
  for (int64_t i = begin; i < end; i += kLanes) {
    const uint32_t word = bits[i / 32] >> (i % 32);
    uint8_t packed[8] = {};
    std::memcpy(packed, &word, sizeof word);
    hn::Store(hn::IfThenElse(hn::LoadMaskBits(d, packed), hn::Load(d, scores + i), neg_inf), d,
              scores + i);
  }
}

// Calls visit(begin, end) for each run of set bits.
template <class Visit>
HWY_INLINE void ForEachRun(const uint32_t* HWY_RESTRICT bits, Visit&& visit) {
  int64_t begin = -1;
  for (int64_t j = 0; j <= kPrefillKeyTile; ++j) {
    const bool set = j < kPrefillKeyTile && (bits[j / 32] >> (j % 32) & 1) != 0;
    if (set && begin < 0) begin = j;
    if (set || begin < 0) continue;
    visit(begin, j);
    begin = -1;
  }
}

// ---- All of it, for the rows of one task

class ScoreModifiers {
 public:
  ScoreModifiers(const AttentionArgs& args, int64_t batch)
      : args_(args), bias_(args.bias), mask_(args.mask), batch_(batch) {}

  bool any() const { return args_.softcap != 0.0f || args_.alibi_slopes.present() || has_bits(); }
  bool has_bits() const { return args_.bias.present() || args_.mask.present(); }
  // The bits of a query are the same for all heads.
  bool same_bits_for_heads() const { return bias_.stride[1] == 0 && mask_.stride[1] == 0; }

  // Scores [begin, end), whole vectors, of the keys of the tile that starts at `key`. `row`: index
  // of the query in bias and mask; `position`: its place among the keys.
  void Modify(float* HWY_RESTRICT scores, int64_t begin, int64_t end, int64_t head, int64_t row,
              int64_t position, int64_t key, int64_t keys) const {
    const DF d;
    if (args_.softcap != 0.0f) {
      ModifyRow(scores, begin, end,
                SoftCap{hn::Set(d, args_.softcap), hn::Set(d, 1.0f / args_.softcap)});
    }
    if (args_.alibi_slopes.present()) {
      const float slope = *args_.alibi_slopes.At<float>(head * args_.alibi_slopes.stride(0));
      ModifyRow(scores, begin, end,
                Alibi{hn::Set(d, slope), hn::Set(d, static_cast<float>(position - key))});
    }
    if (args_.bias.present()) {
      DispatchFloat(args_.bias.dtype, [&]<typename T>() HWY_ATTR {
        ModifyRow(scores, begin, end, BiasOf<T>(head, row, key, keys));
      });
    }
  }

  // The row's part of the bias for `keys` keys from `key` on will be read soon. Rows lie far apart:
  // a bias of its own for every head slows 1024 tokens of 32/8 heads x 128 down by 19 % (31 %
  // without this).
  void PrefetchBias(int64_t head, int64_t row, int64_t key, int64_t keys) const {
    if (!args_.bias.present() || bias_.stride[3] != 1) return;
    const int64_t bytes = BlockBytes(args_.bias.dtype);
    const char* first = args_.bias.As<char>() + bytes * (bias_.Row(batch_, head, row) + key);
    for (int64_t i = 0; i < keys * bytes; i += 64) __builtin_prefetch(first + i);
  }

  // bits &= mask and bias of the keys [key, key + keys).
  void AndBits(int64_t head, int64_t row, int64_t key, int64_t keys,
               uint32_t* HWY_RESTRICT bits) const {
    if (args_.mask.present()) {
      const int64_t offset = mask_.Row(batch_, head, row);
      if (args_.mask.dtype == DType::kU32) {
        AndPackedMask(args_.mask.At<uint32_t>(offset), mask_.stride[3], key, keys, bits);
      } else {
        AndBoolMask(args_.mask.At<uint8_t>(offset + key * mask_.stride[3]), mask_.stride[3], keys,
                    bits);
      }
    }
    if (args_.bias.present()) {
      DispatchFloat(args_.bias.dtype,
                    [&]<typename T>() HWY_ATTR { AndBias(BiasOf<T>(head, row, key, keys), bits); });
    }
  }

 private:
  template <typename T>
  Bias<T> BiasOf(int64_t head, int64_t row, int64_t key, int64_t keys) const {
    return {args_.bias.At<T>(bias_.Row(batch_, head, row) + key * bias_.stride[3]), bias_.stride[3],
            keys};
  }

  const AttentionArgs& args_;
  BroadcastView bias_;
  BroadcastView mask_;
  int64_t batch_;
};

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
