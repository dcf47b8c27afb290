// The usual attention masks by name. Each is one MaskRule; combine them by setting further fields,
// for example a causal mask with a window and two tokens of padding:
//
//   MaskRule rule = SlidingWindowMask(q_len, kv_len, 4096);
//   rule.kv_begin = 2;
//
// In all of them query i stands at key position kv_len - q_len + i: the last query sees the last
// key, so that a decoder passes its past and its new tokens as they are. (For positions counted
// from the first key set rule.causal = Causal::kTopLeft.)
#pragma once

#include "core/ops/mask_rule.h"

namespace tandem {

// Every query sees every key: encoders, cross-attention.
constexpr MaskRule FullMask(int64_t q_len, int64_t kv_len) {
  return {.q_len = q_len, .kv_len = kv_len, .causal = Causal::kNone};
}

// Keys up to the query's own position.
constexpr MaskRule CausalMask(int64_t q_len, int64_t kv_len) {
  return {.q_len = q_len, .kv_len = kv_len};
}

// Causal, the last `window` keys only, the query's own among them (as in Mistral's and Gemma's
// sliding_window). window >= 1.
constexpr MaskRule SlidingWindowMask(int64_t q_len, int64_t kv_len, int64_t window) {
  return {.q_len = q_len, .kv_len = kv_len, .window_left = window - 1};
}

// `left` keys before the query and `right` after it, not causal: local attention of encoders.
constexpr MaskRule LocalMask(int64_t q_len, int64_t kv_len, int64_t left, int64_t right) {
  return {.q_len = q_len,
          .kv_len = kv_len,
          .causal = Causal::kNone,
          .window_left = left,
          .window_right = right};
}

// Causal within chunks of `chunk` keys (chunked attention of Llama 4).
constexpr MaskRule ChunkedMask(int64_t q_len, int64_t kv_len, int64_t chunk) {
  return {.q_len = q_len, .kv_len = kv_len, .chunk = chunk};
}

// Blocks on the diagonal, each whole: every key of the query's own block of `block` keys.
constexpr MaskRule BlockLocalMask(int64_t q_len, int64_t kv_len, int64_t block) {
  return {.q_len = q_len, .kv_len = kv_len, .causal = Causal::kNone, .chunk = block};
}

// The first `prefix_len` keys are visible to all, the rest causal (T5, PaliGemma).
constexpr MaskRule PrefixLmMask(int64_t q_len, int64_t kv_len, int64_t prefix_len) {
  return {.q_len = q_len, .kv_len = kv_len, .prefix_len = prefix_len};
}

// Causal, the first `padding` keys hidden. For padding on the right, or other padding in each
// sequence of a batch, see MaskArgs::kv_lens and kv_starts.
constexpr MaskRule LeftPaddedMask(int64_t q_len, int64_t kv_len, int64_t padding) {
  return {.q_len = q_len, .kv_len = kv_len, .kv_begin = padding};
}

}  // namespace tandem
