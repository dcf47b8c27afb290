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

  // Position of query `q` among the keys.
  TANDEM_HOST_DEVICE int64_t Position(int64_t q) const {
    return causal == Causal::kTopLeft ? q : kv_len - q_len + q;
  }

  // Visible keys of query `q`; begin <= end, both within [0, kv_len].
  TANDEM_HOST_DEVICE KeyRange Range(int64_t q) const {
    const int64_t position = Position(q);
    int64_t begin = kv_begin;
    int64_t end = kv_len;
    if (causal != Causal::kNone) {
      const int64_t causal_end = position + 1 > prefix_len ? position + 1 : prefix_len;
      if (causal_end < end) end = causal_end;
    }
    // Written as differences from the bounds: position + window_right may overflow.
    if (window_right >= 0 && window_right < kv_len + q_len && position + window_right + 1 < end) {
      end = position + window_right + 1;
    }
    if (window_left >= 0 && window_left < kv_len + q_len && position - window_left > begin) {
      begin = position - window_left;
    }
    if (chunk > 0) {
      // A position below 0 lies in no chunk that has keys.
      const int64_t first = position >= 0 ? position - internal::Remainder(position, chunk) : 0;
      if (first > begin) begin = first;
      if (position < 0) end = 0;
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
