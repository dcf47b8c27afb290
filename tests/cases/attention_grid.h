// What the grids of attention's cases are made of, and the grids of other projects.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "tests/cases/attention_cases.h"
#include "tests/cases/pairwise.h"

namespace tandem::cases {

using AttentionSettings = Pairwise<AttentionCase>::Settings;

// Keeps a case affordable for the f64 reference: sequences and heads shrink before lengths do.
inline AttentionCase Bounded(AttentionCase c, int64_t limit) {
  const auto work = [&] { return c.batch * c.q_heads * c.q_len * c.kv_len * c.head_dim; };
  if (work() > limit) c.batch = 1;
  if (work() > limit) {
    c.q_heads /= c.kv_heads;
    c.kv_heads = 1;
  }
  // Large groups are decoding's: few queries.
  while (work() > limit && c.q_heads >= 8 && c.q_len > 1) c.q_len /= 2;
  return c;
}

inline std::vector<AttentionCase> Bounded(std::vector<AttentionCase> cases, int64_t limit) {
  for (AttentionCase& c : cases) c = Bounded(c, limit);
  return cases;
}

inline void SetHeads(AttentionCase& c, int64_t kv_heads, int64_t group) {
  c.kv_heads = kv_heads;
  c.q_heads = kv_heads * group;
}

inline AttentionSettings Heads(const std::vector<std::pair<int64_t, int64_t>>& heads) {
  AttentionSettings settings;
  for (const auto& [kv_heads, group] : heads) {
    settings.push_back([=](AttentionCase& c) { SetHeads(c, kv_heads, group); });
  }
  return settings;
}

inline AttentionSettings Lengths(const std::vector<std::pair<int64_t, int64_t>>& lengths) {
  AttentionSettings settings;
  for (const auto& [q_len, kv_len] : lengths) {
    settings.push_back([=](AttentionCase& c) {
      c.q_len = q_len;
      c.kv_len = kv_len;
    });
  }
  return settings;
}

// q, kv, out
inline AttentionSettings DTypes(const std::vector<std::array<DType, 3>>& dtypes) {
  AttentionSettings settings;
  for (const auto& [q, kv, out] : dtypes) {
    settings.push_back([=](AttentionCase& c) {
      c.q_dtype = q;
      c.kv_dtype = kv;
      c.out_dtype = out;
    });
  }
  return settings;
}

inline AttentionSettings Windows(const std::vector<std::pair<int64_t, int64_t>>& windows) {
  AttentionSettings settings;
  for (const auto& [left, right] : windows) {
    settings.push_back([=](AttentionCase& c) {
      c.window_left = left;
      c.window_right = right;
    });
  }
  return settings;
}

inline AttentionSettings NewKeys(const std::vector<std::pair<int64_t, DType>>& news) {
  AttentionSettings settings;
  for (const auto& [length, dtype] : news) {
    settings.push_back([=](AttentionCase& c) {
      c.new_len = length;
      c.new_dtype = dtype;
    });
  }
  return settings;
}

// FlashAttention's test grid: head sizes, lengths, windows, ALiBi, soft cap.
std::vector<AttentionCase> FlashAttentionCases();
// FlashAttention's grid of the cache: pages, keys beside it, padding on the left, ragged batches.
std::vector<AttentionCase> FlashAttentionCacheCases();
// ggml's FLASH_ATTN_EXT tests: additive masks of which a fifth of the blocks is -inf.
std::vector<AttentionCase> GgmlAttentionCases();

}  // namespace tandem::cases
