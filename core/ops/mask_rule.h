// The one rule that says which keys a query may see. Mask creation, every attention kernel on every
// device, and the references all ask this struct; nothing else in the system knows what "causal"
// means.
//
// Query i of q_len stands at key position p(i):
//   kBottomRight  p(i) = kv_len - q_len + i   the last query sees the last key (decoding with a
//                                             past); may be negative
//   kTopLeft      p(i) = i                    the first query sees only the first key
//   kNone         every key is visible, but for window and chunk, which are then placed as for
//                 kBottomRight
// Visible(i, j):  kv_begin <= j < kv_len,                                padding on the left
//                 j <= p(i) or j < prefix_len       if causal            prefix-LM
//                 j >= p(i) - window_left           if window_left  >= 0
//                 j <= p(i) + window_right          if window_right >= 0
//                 floor(j / chunk) == floor(p(i) / chunk)   if chunk > 0   block-local attention
// Parts of a sequence. A rule may describe keys keys_before .. keys_before + kv_len - 1 of a longer
// sequence, behind which keys_after more follow: keys and positions are then counted from the
// part's first key (so that differences of them are what they are in the whole), while chunk,
// prefix_len and kv_begin are those of the whole sequence. With a = keys_before:
//   p(i) = kv_len + keys_after - q_len + i, or i - a for kTopLeft;
//   Visible(i, j) is Visible of the whole for i and a + j.
// The visible keys of a row are always one range [begin, end), which is what kernels use. It may be
// empty. Both bounds never decrease from one query to the next, and without chunks they grow by at
// most one.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace tandem {

enum class Causal : uint8_t { kNone, kBottomRight, kTopLeft };

// Validate allows lengths up to this, so that no position computed from a rule leaves 64 bits.
inline constexpr int64_t kMaxSequenceLength = int64_t{1} << 48;

namespace internal {

// a % b for a >= 0, b > 0. On a GPU a 64-bit remainder is a subroutine, around which a kernel would
// have to keep all its registers.
TANDEM_HOST_DEVICE inline int64_t Remainder(int64_t a, int64_t b) {
#if defined(__CUDA_ARCH__)
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) % static_cast<uint32_t>(b);
  int64_t rest = 0;
#pragma unroll 1
  for (int bit = 62; bit >= 0; --bit) {
    rest = rest << 1 | (a >> bit & 1);
    if (rest >= b) rest -= b;
  }
  return rest;
#else
  return a % b;
#endif
}

}  // namespace internal

struct KeyRange {
  int64_t begin;
  int64_t end;
};

struct MaskRule {
  int64_t q_len = 0;
  int64_t kv_len = 0;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;   // keys before the query's own position; -1: unlimited
  int64_t window_right = -1;  // keys after it; -1: unlimited
  int64_t chunk = 0;          // keys per chunk; 0: one chunk
  int64_t prefix_len = 0;     // leading keys that causality does not hide
  int64_t kv_begin = 0;       // first key that is not padding
  int64_t keys_before = 0;    // keys of the sequence before the first of these kv_len,
  int64_t keys_after = 0;     // and behind the last

  // Position of query `q`, counted like the keys; it may be in front of them or behind.
  TANDEM_HOST_DEVICE int64_t Position(int64_t q) const {
    return causal == Causal::kTopLeft ? q - keys_before : kv_len + keys_after - q_len + q;
  }

  // The first key that is not padding, counted like the keys: below 0 or beyond kv_len if it lies
  // in another part.
  TANDEM_HOST_DEVICE int64_t FirstKey() const { return kv_begin - keys_before; }

  // Makes this the rule of a sequence with `length` keys in its cache, rows keys_before ..
  // keys_before + rows - 1 of which are at hand, and `new_len` keys behind the last of the cache;
  // `new_after` further ones follow. Returns how many keys of the cache are at hand.
  TANDEM_HOST_DEVICE int64_t SetLength(int64_t length, int64_t rows, int64_t new_len,
                                       int64_t new_after) {
    if (length < keys_before) keys_before = length;
    const int64_t behind = length - keys_before;
    const int64_t cached = behind < rows ? behind : rows;
    kv_len = cached + new_len;
    keys_after = behind - cached + new_after;
    return cached;
  }

  // Visible keys of query `q`; begin <= end, both within [0, kv_len].
  TANDEM_HOST_DEVICE KeyRange Range(int64_t q) const {
    const int64_t position = Position(q);
    int64_t begin = FirstKey() > 0 ? FirstKey() : 0;
    int64_t end = kv_len;
    if (causal != Causal::kNone) {
      const int64_t prefix_end = prefix_len - keys_before;
      const int64_t causal_end = position + 1 > prefix_end ? position + 1 : prefix_end;
      if (causal_end < end) end = causal_end;
    }
    // Written as differences from the bounds: position + window_right may overflow.
    const int64_t farthest = keys_before + kv_len + keys_after + q_len;
    if (window_right >= 0 && window_right < farthest && position + window_right + 1 < end) {
      end = position + window_right + 1;
    }
    if (window_left >= 0 && window_left < farthest && position - window_left > begin) {
      begin = position - window_left;
    }
    if (chunk > 0) {
      // A position in front of the sequence lies in no chunk that has keys.
      const int64_t whole = position + keys_before;
      const int64_t first = whole >= 0 ? position - internal::Remainder(whole, chunk) : 0;
      if (first > begin) begin = first;
      if (whole < 0) end = 0;
      if (chunk < end - first) end = first + chunk;
    }
    if (end < 0) end = 0;
    if (begin > end) begin = end;
    return {begin, end};
  }

  TANDEM_HOST_DEVICE bool Visible(int64_t q, int64_t k) const {
    const KeyRange range = Range(q);
    return k >= range.begin && k < range.end;
  }
};

}  // namespace tandem
