// Scaled dot-product attention over a key/value cache, with grouped query heads and the variants in
// use.
//
//   s[b,h,i,j] = softcap(scale * sum_d q[b,h,i,d] * K[b,g,j,d])        g = h / (Hq / Hkv)
//                - alibi_slopes[h] * |p(i) - j| + bias[b,h,i,j]
//   p[b,h,i,:] = softmax over the keys j that query i sees, and the sink
//              = exp(s[j]) / (sum_j exp(s[j]) + exp(sinks[h]))         (no last term without sinks)
//   out[b,h,i,:] = sum_j p[b,h,i,j] * V[b,g,j,:]
//   lse[b,h,i]   = log(sum_j exp(s[b,h,i,j]) + exp(sinks[h]))          natural logarithm
//   softcap(x)   = softcap * tanh(x / softcap), or x without one
// Query i sees key j if MaskRule says so (p(i) is its position there), and mask[b,h,i,j] is set,
// and bias[b,h,i,j] is not -inf.
//
// | name      | meaning                                                        |
// |-----------|----------------------------------------------------------------|
// | B         | sequences                                                      |
// | Hq, Hkv   | query heads, key/value heads; Hq % Hkv == 0                    |
// | Sq        | queries per sequence (the most, if ragged)                     |
// | Skv       | keys in the cache (k, v) per sequence (the most, if ragged)    |
// | Snew      | keys passed beside the cache (k_new, v_new), behind its last   |
// | S         | Skv + Snew                                                     |
// | D, Dv     | head dimension of q and k; of v and out                        |
//
// The key sequence is k followed by k_new: the result is the same as if k_new had been appended
// first. Sums are accumulated in f32 whatever the storage type. Any strides; fast kernels want
// stride 1 in D.
//
// Ragged batches. kv_lens: sequence b has its first kv_lens[b] keys of k (new keys follow them).
// q_lens: it has its first q_lens[b] queries; the other rows give out = 0, lse = -inf.
// q_offsets instead packs the queries: q, out and lse have batch extent 1 and T rows, of which
// q_offsets[b] .. q_offsets[b+1]-1 are those of sequence b (q_offsets[0] = 0, q_offsets[B] = T); a
// bias or mask then has T rows too. Lengths of 0 are fine. kv_starts: the first kv_starts[b] keys
// are padding (on the left) and not visible; positions count them.
//
// Paged cache. With page_table, k and v are pools of pages: key j of sequence b is row
// j % page_size of page page_table[b, j / page_size]. Skv is then page_size * (columns of
// page_table); kv_lens is required. Entries behind the last page in use are not read.
//
// int8 cache. k and v are i8 with one f32 scale per token and head: K[j,:] = k_scale[j] * k[j,:].
//
// Parts of the keys. k and v may be rows keys_before .. keys_before + Skv - 1 of a longer cache, of
// which keys_after rows follow; new keys stand behind the whole cache, so keys_after is 0 where
// they are given, and a call that leaves them to another tells how many there are in new_after.
// kv_lens (now up to keys_before + Skv + keys_after), kv_starts, chunk, prefix_len and all
// positions are those of the whole sequence; a page table, bias and mask have the part's columns
// only. out and lse of such calls on disjoint rows that make up the cache, merged
// (core/ops/merge_attention.h), are attention over the whole, if one of the calls alone has the
// sinks. core/ops/split_attention.h makes the calls.
//
// Batch invariance. With batch_invariant a sequence's rows of out and lse are the same bits
// whatever else is in the batch: alone or among others, wherever it stands, however long they are,
// and however much room the cache has behind its keys. Fixed are what the sequence itself has
// (queries, keys, its lengths, its part of bias and mask), the extents of one sequence (heads, head
// dimensions, Sq unless packed, Snew, page size), types, variants, and the kernel. A kernel whose
// cut of the work does not allow it declines, and so does one whose bounds on a packed call depend
// on what else is packed; the measured choice of kernels is left aside, so the order of the list
// decides. Keys are then cut by their number alone: a long sequence alone takes longer.
//
// Edge cases. Sq = 0 (or B or Hq = 0): nothing is written. A query that sees no key (also S = 0):
// out = 0, lse = -inf (with sinks: lse = sinks[h]). A NaN in q, or in a visible k or v, makes the
// row NaN; what is not visible (masked out, or in padding) never reaches a result. Scores may
// exceed the range of f16: they are f32.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/mask_rule.h"
#include "core/tensor_view.h"

namespace tandem {

// One sequence of a batch: where its queries lie and what they may see.
struct AttentionSequence {
  int64_t q_batch = 0;    // index into dimension 0 of q, out and lse
  int64_t q_begin = 0;    // row of its first query there
  int64_t cache_len = 0;  // keys in the cache; new keys stand at positions cache_len..
  MaskRule rule;          // of this sequence; kv_len: cache_len and the new keys
};

struct AttentionArgs {
  static constexpr OpKind kOp = OpKind::kAttention;

  TensorView q;      // [B, Hq, Sq, D]      f32, f16, bf16; packed: [1, Hq, T, D]
  TensorView k;      // [B, Hkv, Skv, D]    f32, f16, bf16, i8; paged: [pages, Hkv, page_size, D]
  TensorView v;      // [B, Hkv, Skv, Dv]   dtype of k; paged: [pages, Hkv, page_size, Dv]
  TensorView k_new;  // [B, Hkv, Snew, D]   optional (absent: rank 0), f32, f16, bf16
  TensorView v_new;  // [B, Hkv, Snew, Dv]  present iff k_new is, same dtype
  TensorView out;    // [B, Hq, Sq, Dv]     f32, f16, bf16; packed: [1, Hq, T, Dv]
  TensorView lse;    // [B, Hq, Sq]         optional, f32; packed: [1, Hq, T]

  std::optional<float> scale;  // default 1 / sqrt(D)
  float softcap = 0.0f;        // 0: none; else > 0
  TensorView alibi_slopes;     // [Hq]                          optional, f32
  TensorView bias;             // [B|1, Hq|1, Sq|1, S|1]        optional, f32, f16, bf16
  TensorView mask;             // [B|1, Hq|1, Sq|1, S|1]        optional, bool: 1 = visible; or
                               // [B|1, Hq|1, Sq|1, ceil(S/32)] u32: bit j % 32 of word j / 32
  TensorView sinks;            // [Hq]                          optional, f32

  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;  // these five: see MaskRule
  int64_t window_right = -1;
  int64_t chunk = 0;
  int64_t prefix_len = 0;

  int64_t keys_before = 0;  // rows of the cache in front of those of k; these three: see above
  int64_t keys_after = 0;   // rows behind them
  int64_t new_after = 0;    // new keys that another call is given

  bool batch_invariant = false;  // see above

  TensorView q_lens;      // [B]             optional, i32, 0..Sq; not with q_offsets
  TensorView q_offsets;   // [B + 1]         optional, i32
  TensorView kv_lens;     // [B]             optional, i32, 0..cache_rows()
  TensorView kv_starts;   // [B]             optional, i32, >= 0
  TensorView page_table;  // [B, max_pages]  optional, i32
  TensorView k_scale;     // [B, Hkv, Skv]   iff k is i8, f32; paged: [pages, Hkv, page_size]
  TensorView v_scale;     // same

  bool paged() const { return page_table.present(); }
  bool ragged() const {
    return q_lens.present() || q_offsets.present() || kv_lens.present() || kv_starts.present();
  }
  int64_t batch() const { return q_offsets.present() ? q_offsets.dim(0) - 1 : q.dim(0); }
  int64_t q_heads() const { return q.dim(1); }
  int64_t q_len() const { return q.dim(2); }  // the most of any sequence; packed: T
  int64_t head_dim() const { return q.dim(3); }
  int64_t kv_heads() const { return k.dim(1); }
  int64_t group() const { return k.dim(1) ? q.dim(1) / k.dim(1) : 0; }  // query heads per kv head
  int64_t page_size() const { return k.dim(2); }                        // if paged
  int64_t cache_len() const { return paged() ? page_table.dim(1) * k.dim(2) : k.dim(2); }
  int64_t new_len() const { return k_new.present() ? k_new.dim(2) : 0; }
  int64_t kv_len() const { return cache_len() + new_len(); }
  // Of the whole cache, of which k may be a part.
  int64_t cache_rows() const { return keys_before + cache_len() + keys_after; }
  int64_t v_head_dim() const { return v.dim(3); }

  float Scale() const;
  // The rule of a batch whose sequences are all alike (not ragged()).
  MaskRule Rule() const {
    return {q_len(), kv_len(),   causal, window_left, window_right,
            chunk,   prefix_len, 0,      keys_before, keys_after + new_after};
  }
  // Sequence b of any batch. Reads q_lens etc., which must be in host memory.
  AttentionSequence Sequence(int64_t b) const {
    const auto entry = [](const TensorView& list, int64_t i) {
      return int64_t{*list.At<int32_t>(i * list.stride(0))};
    };
    AttentionSequence sequence = {b, 0, cache_len(), Rule()};
    if (q_offsets.present()) {
      sequence.q_batch = 0;
      sequence.q_begin = entry(q_offsets, b);
      sequence.rule.q_len = entry(q_offsets, b + 1) - sequence.q_begin;
    }
    if (q_lens.present()) sequence.rule.q_len = entry(q_lens, b);
    if (kv_lens.present()) {
      sequence.cache_len =
          sequence.rule.SetLength(entry(kv_lens, b), cache_len(), new_len(), new_after);
    }
    if (kv_starts.present()) sequence.rule.kv_begin = entry(kv_starts, b);
    return sequence;
  }
};

// Also checks the contents of q_lens, q_offsets, kv_lens, kv_starts and the used part of
// page_table, if they are in host memory.
absl::Status Validate(const AttentionArgs& args);

}  // namespace tandem
