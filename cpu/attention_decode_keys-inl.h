// Which keys decode attention reads, in tiles: where their rows lie (dense cache, pages, new keys)
// and which query rows see them (range of the mask rule, mask, bias of -inf). Everything that
// differs between the layouts of a cache and between the kinds of visibility ends here; the
// arithmetic (attention_decode_tile-inl.h) sees row pointers, and bits where a tile is not plain.
#if defined(TANDEM_CPU_ATTENTION_DECODE_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_KEYS_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_KEYS_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_KEYS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/ops/attention.h"
#include "cpu/attention_decode_tile-inl.h"
#include "cpu/attention_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

static_assert(kTileKeys == 64, "one bit per key");

// Bits [begin, end) of 64.
HWY_INLINE uint64_t BitRange(int64_t begin, int64_t end) {
  if (begin >= end) return 0;
  return (~uint64_t{0} >> (64 - (end - begin))) << begin;
}

// The query rows that share a key/value head of one sequence: row = query * group + head of the
// group.
struct DecodeRows {
  int64_t batch = 0, kv_head = 0;
  int64_t rows = 0;  // group * queries of this sequence
  int64_t group = 1;
  AttentionSequence sequence;
  KeyRange any = {0, 0};  // keys that some row sees by the rule
  KeyRange all = {0, 0};  // keys that every row sees by the rule (may be empty)

  // Rows are few: 32-bit divisions take half the time.
  int64_t Query(int64_t row) const {
    return static_cast<uint32_t>(row) / static_cast<uint32_t>(group);
  }
  int64_t Head(int64_t row) const {  // query head
    return kv_head * group + static_cast<uint32_t>(row) % static_cast<uint32_t>(group);
  }
  // Offset in q, out or lse.
  int64_t Offset(const TensorView& view, int64_t row) const {
    return sequence.q_batch * view.stride(0) + Head(row) * view.stride(1) +
           (sequence.q_begin + Query(row)) * view.stride(2);
  }
  // Offset of column 0 in bias or mask, whose extents are whole or 1.
  int64_t BroadcastOffset(const TensorView& view, int64_t row) const {
    const int64_t index[] = {batch, Head(row), sequence.q_begin + Query(row)};
    int64_t offset = 0;
    for (int axis = 0; axis < 3; ++axis) {
      if (view.dim(axis) != 1) offset += index[axis] * view.stride(axis);
    }
    return offset;
  }
};

inline int64_t ColumnStride(const TensorView& view) {
  return view.dim(3) == 1 ? 0 : view.stride(3);
}

// Those of key/value head 0 of sequence `batch`.
inline DecodeRows MakeDecodeRows(const AttentionArgs& args, int64_t batch) {
  DecodeRows rows;
  rows.batch = batch;
  rows.group = args.group();
  rows.sequence = args.Sequence(batch);
  const MaskRule& rule = rows.sequence.rule;
  rows.rows = rows.group * rule.q_len;
  if (rule.q_len > 0) {
    const KeyRange first = rule.Range(0), last = rule.Range(rule.q_len - 1);
    rows.any = {first.begin, std::max(first.begin, last.end)};  // both bounds grow with the query
    rows.all = {last.begin, first.end};
  }
  return rows;
}

// Keys that the rows see, as many as are worked on at a time.
template <typename T>
struct KeyTile {
  int64_t key;   // position of the first
  int64_t keys;  // 0: none left
  // Rows of K and V. Those of k go on to a whole group, repeating the last; those of v to an even
  // number, with zeros.
  const T* k[kTileKeys];
  const T* v[kTileKeys];
  // i8 only, and up to a whole vector behind the last key.
  float k_scale[kTileKeys + kLanes];
  float v_scale[kTileKeys + kLanes];
  bool masked;                       // some row does not see some key
  uint64_t visible[kMaxDecodeRows];  // if masked: the keys each row sees
  // Keys that only some rows see and whose value is not finite: their weights of 0 would let a NaN
  // through, so v points to zeros and they are added apart.
  uint64_t apart;
};

// Bits of the keys [key, key + keys) that row `row` sees.
HWY_NOINLINE inline uint64_t VisibleBits(const AttentionArgs& args, const DecodeRows& rows,
                                         int64_t row, int64_t key, int64_t keys) {
  const KeyRange range = rows.sequence.rule.Range(rows.Query(row));
  uint64_t bits = BitRange(std::clamp(range.begin, key, key + keys) - key,
                           std::clamp(range.end, key, key + keys) - key);
  if (args.mask.present() && bits != 0) {
    const int64_t stride = ColumnStride(args.mask);
    const int64_t offset = rows.BroadcastOffset(args.mask, row);
    uint64_t shown = 0;
    if (args.mask.dtype == DType::kBool) {
      const uint8_t* mask = args.mask.At<uint8_t>(offset + key * stride);
      for (int64_t j = 0; j < keys; ++j) shown |= uint64_t{mask[j * stride] != 0} << j;
    } else {
      for (int64_t j = -(key % 32); j < keys; j += 32) {
        const uint64_t word = *args.mask.At<uint32_t>(offset + (key + j) / 32 * stride);
        shown |= j < 0 ? word >> -j : word << j;
      }
    }
    bits &= shown;
  }
  if (args.bias.present() && bits != 0) {
    const int64_t stride = ColumnStride(args.bias);
    const int64_t offset = rows.BroadcastOffset(args.bias, row) + key * stride;
    DispatchFloat(args.bias.dtype, [&]<typename T>() {
      const T* bias = args.bias.At<T>(offset);
      for (int64_t j = 0; j < keys; ++j) {
        if (ToFloat(bias[j * stride]) == kNegInf) bits &= ~(uint64_t{1} << j);
      }
    });
  }
  return bits;
}

template <typename T>
HWY_NOINLINE bool IsFinite(const T* HWY_RESTRICT row, int64_t n) {
  const DF d;
  VF zero = hn::Zero(d);  // or NaN
  for (int64_t i = 0; i * kLanes < n; ++i) {
    zero = hn::MulAdd(LoadF32Part(row, i, n), hn::Zero(d), zero);
  }
  return hn::AllTrue(d, hn::Eq(zero, hn::Zero(d)));
}

// Walks over the keys [next, end) of one source type in tiles.
template <typename T>
class KeyWalk {
 public:
  // The keys of [begin, end) that are stored as T: in the cache, in the new keys, or both. `zeros`:
  // as many as a row of V has.
  KeyWalk(const AttentionArgs& args, const DecodeRows& rows, int64_t begin, int64_t end,
          int64_t tile_keys, const void* zeros)
      : args_(args),
        rows_(rows),
        next_(begin),
        end_(end),
        tile_keys_(tile_keys),
        zeros_(static_cast<const T*>(zeros)),
        has_bits_(args.mask.present() || args.bias.present()) {}

  // The next tile with a visible key; false (and keys = 0) if there is none.
  HWY_NOINLINE bool Next(KeyTile<T>& tile) {
    while (next_ < end_) {
      tile.key = next_;
      tile.keys = std::min(tile_keys_, end_ - next_);
      next_ += tile.keys;
      tile.apart = 0;
      tile.masked = has_bits_ || tile.key < rows_.all.begin || tile.key + tile.keys > rows_.all.end;
      if (!tile.masked) {
        Locate(tile);
        return true;
      }
      uint64_t all = BitRange(0, tile.keys), any = 0;
      for (int64_t r = 0; r < rows_.rows; ++r) {
        tile.visible[r] = VisibleBits(args_, rows_, r, tile.key, tile.keys);
        all &= tile.visible[r];
        any |= tile.visible[r];
      }
      if (any == 0) continue;
      Locate(tile);
      HideValues(tile, any, all);
      return true;
    }
    tile.keys = 0;
    return false;
  }

  // Row of V of key `key` of a tile, also where Next put zeros.
  const T* Value(const KeyTile<T>& tile, int64_t key) const { return RowOf(tile.key + key, false); }
  float ValueScale(const KeyTile<T>& tile, int64_t key) const {
    return *ScaleOf(args_.v_scale, tile.key + key);
  }

 private:
  // Offset of key j of the cache in k, v or a scale.
  int64_t CacheOffset(const TensorView& view, int64_t j) const {
    int64_t plane = rows_.batch, index = j;
    if (args_.paged()) {
      const TensorView& table = args_.page_table;
      plane = *table.At<int32_t>(rows_.batch * table.stride(0) +
                                 j / args_.page_size() * table.stride(1));
      index = j % args_.page_size();
    }
    return plane * view.stride(0) + rows_.kv_head * view.stride(1) + index * view.stride(2);
  }
  const T* RowOf(int64_t j, bool key) const {
    const int64_t cached = rows_.sequence.cache_len;
    if (j < cached) {
      const TensorView& view = key ? args_.k : args_.v;
      return view.At<T>(CacheOffset(view, j));
    }
    const TensorView& view = key ? args_.k_new : args_.v_new;
    return view.At<T>(rows_.batch * view.stride(0) + rows_.kv_head * view.stride(1) +
                      (j - cached) * view.stride(2));
  }
  const float* ScaleOf(const TensorView& view, int64_t j) const {
    return view.At<float>(CacheOffset(view, j));
  }

  // Fetches as many scales as have just been read, behind them: in a dense cache or a large page
  // those of the next tile. They are read when that is described, and a miss then would hold up
  // everything: 0.85 of the time from memory, 8 heads of 128 (Zen 5).
  static void FetchScales(const float* scales, int64_t stride, int64_t count) {
    const int64_t step = stride == 1 ? 64 / static_cast<int64_t>(sizeof(float)) : 1;
    const uintptr_t bytes = static_cast<uintptr_t>(stride) * sizeof(float);
    for (int64_t i = count; i < 2 * count; i += step) {  // need not lie in any object
      __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(scales) +
                                                       static_cast<uintptr_t>(i) * bytes));
    }
  }

  // Row pointers, run by run: keys of one page, of a dense cache, or the new keys.
  void Locate(KeyTile<T>& tile) const {
    const int64_t cached = rows_.sequence.cache_len;
    for (int64_t j = 0; j < tile.keys;) {
      const int64_t key = tile.key + j;
      const bool in_cache = key < cached;
      int64_t run = tile.keys - j;
      if (in_cache) run = std::min(run, cached - key);
      if (in_cache && args_.paged()) {
        run = std::min(run, args_.page_size() - key % args_.page_size());
      }
      const T* k = RowOf(key, true);
      const T* v = RowOf(key, false);
      const int64_t k_stride = in_cache ? args_.k.stride(2) : args_.k_new.stride(2);
      const int64_t v_stride = in_cache ? args_.v.stride(2) : args_.v_new.stride(2);
      for (int64_t i = 0; i < run; ++i) {
        tile.k[j + i] = k + i * k_stride;
        tile.v[j + i] = v + i * v_stride;
      }
      if constexpr (std::is_same_v<T, int8_t>) {
        const float* k_scale = ScaleOf(args_.k_scale, key);
        const float* v_scale = ScaleOf(args_.v_scale, key);
        for (int64_t i = 0; i < run; ++i) {
          tile.k_scale[j + i] = k_scale[i * args_.k_scale.stride(2)];
          tile.v_scale[j + i] = v_scale[i * args_.v_scale.stride(2)];
        }
        FetchScales(k_scale, args_.k_scale.stride(2), run);
        FetchScales(v_scale, args_.v_scale.stride(2), run);
      }
      j += run;
    }
    for (int64_t j = tile.keys; j % kKeyGroup != 0; ++j) tile.k[j] = tile.k[tile.keys - 1];
    if (tile.keys % 2 != 0) tile.v[tile.keys] = zeros_;
    if constexpr (std::is_same_v<T, int8_t>) {
      std::fill_n(tile.k_scale + tile.keys, kLanes, 0.0f);
      std::fill_n(tile.v_scale + tile.keys, kLanes, 0.0f);
    }
  }

  // Values that some or all rows do not see must not reach those rows: not even times 0.
  void HideValues(KeyTile<T>& tile, uint64_t any, uint64_t all) const {
    for (int64_t j = 0; j < tile.keys; ++j) {
      if (all >> j & 1) continue;
      bool finite;
      if constexpr (std::is_same_v<T, int8_t>) {
        finite = tile.v_scale[j] - tile.v_scale[j] == 0.0f;
        if (!finite) tile.v_scale[j] = 0.0f;
      } else {
        finite = IsFinite(tile.v[j], args_.v_head_dim());
      }
      if (finite) continue;
      tile.v[j] = zeros_;
      if (any >> j & 1) tile.apart |= uint64_t{1} << j;
    }
  }

  const AttentionArgs& args_;
  const DecodeRows& rows_;
  int64_t next_, end_, tile_keys_;
  const T* zeros_;
  bool has_bits_;
};

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
