// Cases of attention (core/ops/attention.h).
//
// Whatever no query sees is NaN: keys beyond a sequence's length, left padding, unused pages and
// the rest of the last one, keys that rule, mask and bias hide from every query, biases that the
// rule or the mask hides, queries beyond q_lens. Unused page table entries are far out of range.
#pragma once

#include <string>
#include <vector>

#include "core/ops/attention.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"

namespace tandem::cases {

// What the inputs hold, beside random normals.
enum class AttentionValues : uint8_t {
  kNormal,
  kLarge,     // scores far beyond the range of f16
  kNanFirst,  // NaN in each sequence's first key and value: the rows that see it become NaN
  kNanLast,   // NaN in its last key and value
  kNanQuery,  // NaN in its first query
};
template <>
inline constexpr std::array<std::string_view, 5> kEnumNames<AttentionValues> = {
    "normal", "large", "nan_first", "nan_last", "nan_query"};

// The extents of a bias or mask.
enum class AttentionExtents : uint8_t {
  kAbsent,
  kFull,             // [B, Hq, Sq, S]
  kOneHead,          // [B, 1, Sq, S]
  kOneBatch,         // [1, Hq, Sq, S]
  kOneHeadAndQuery,  // [B, 1, 1, S]
  kOneBatchAndHead,  // [1, 1, Sq, S]
  kOneKey,           // [B, Hq, Sq, 1]; of a packed mask: kFull
};
template <>
inline constexpr std::array<std::string_view, 7> kEnumNames<AttentionExtents> = {
    "absent", "full", "one_head", "one_batch", "one_head_and_query", "one_batch_and_head",
    "one_key"};

// What a mask (0) or bias (-inf) hides.
enum class AttentionHidden : uint8_t {
  kNothing,
  kEntries,  // one in five
  kBlocks,   // one in five blocks of 16 queries x 32 keys
  kRows,     // one in four rows, entirely
};
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<AttentionHidden> = {
    "nothing", "entries", "blocks", "rows"};

enum class AttentionQueries : uint8_t {
  kWhole,
  kRagged,  // q_lens, some 0
  kPacked,  // q_offsets
};
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<AttentionQueries> = {"whole", "ragged",
                                                                                 "packed"};

struct AttentionCase {
  using Args = AttentionArgs;

  int64_t batch = 1;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t q_len = 1;     // the most of a sequence
  int64_t kv_len = 1;    // keys in the cache (the most of a sequence)
  int64_t new_len = -1;  // keys beside it; -1: not given
  int64_t head_dim = 64;
  int64_t v_head_dim = 0;  // 0: as head_dim
  DType q_dtype = DType::kF32;
  DType kv_dtype = DType::kF32;
  DType new_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;
  int64_t window_right = -1;
  int64_t chunk = 0;
  int64_t prefix_len = 0;
  int64_t keys_before = 0;  // of a longer cache: rows that the call does not have
  int64_t keys_after = 0;
  int64_t new_after = 0;
  bool batch_invariant = false;
  std::optional<float> scale = std::nullopt;
  float softcap = 0.0f;
  bool alibi = false;
  bool sinks = false;
  AttentionExtents bias = AttentionExtents::kAbsent;
  DType bias_dtype = DType::kF32;
  AttentionHidden bias_hides = AttentionHidden::kEntries;
  AttentionExtents mask = AttentionExtents::kAbsent;
  bool mask_packed = false;
  AttentionHidden mask_hides = AttentionHidden::kEntries;
  AttentionQueries queries = AttentionQueries::kWhole;
  bool ragged_kv = false;  // kv_lens, some 0
  bool left_padding = false;
  int64_t page_size = 0;  // 0: not paged
  bool lse = false;
  Layout q_layout = Layout::kContiguous;
  Layout kv_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Layout bias_layout = Layout::kContiguous;  // and the mask's
  AttentionValues values = AttentionValues::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("batch", self.batch);
    visit("q_heads", self.q_heads);
    visit("kv_heads", self.kv_heads);
    visit("q_len", self.q_len);
    visit("kv_len", self.kv_len);
    visit("new_len", self.new_len);
    visit("head_dim", self.head_dim);
    visit("v_head_dim", self.v_head_dim);
    visit("q_dtype", self.q_dtype);
    visit("kv_dtype", self.kv_dtype);
    visit("new_dtype", self.new_dtype);
    visit("out_dtype", self.out_dtype);
    visit("causal", self.causal);
    visit("window_left", self.window_left);
    visit("window_right", self.window_right);
    visit("chunk", self.chunk);
    visit("prefix_len", self.prefix_len);
    visit("keys_before", self.keys_before);
    visit("keys_after", self.keys_after);
    visit("new_after", self.new_after);
    visit("batch_invariant", self.batch_invariant);
    visit("scale", self.scale);
    visit("softcap", self.softcap);
    visit("alibi", self.alibi);
    visit("sinks", self.sinks);
    visit("bias", self.bias);
    visit("bias_dtype", self.bias_dtype);
    visit("bias_hides", self.bias_hides);
    visit("mask", self.mask);
    visit("mask_packed", self.mask_packed);
    visit("mask_hides", self.mask_hides);
    visit("queries", self.queries);
    visit("ragged_kv", self.ragged_kv);
    visit("left_padding", self.left_padding);
    visit("page_size", self.page_size);
    visit("lse", self.lse);
    visit("q_layout", self.q_layout);
    visit("kv_layout", self.kv_layout);
    visit("out_layout", self.out_layout);
    visit("bias_layout", self.bias_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  AttentionArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const AttentionArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<AttentionCase> Grid(GridSize size);  // attention_grid.cc
  static AttentionCase Random(Rng& rng);
};

}  // namespace tandem::cases
