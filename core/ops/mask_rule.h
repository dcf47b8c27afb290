// The one rule that says which keys a query may see. Mask creation, every attention kernel on every
// device, and the references all ask this struct; nothing else in the system knows what "causal"
// means.
//
// Query i of q_len stands at key position p(i):
//   kBottomRight  p(i) = kv_len - q_len + i   the last query sees the last key (decoding with a
//   past); may be negative kTopLeft      p(i) = i                    the first query sees only the
//   first key kNone         every key is visible, but for the window, which is then placed as for
//   kBottomRight
// Visible(i, j):  0 <= j < kv_len,
//                 j <= p(i)                      if causal
//                 j >= p(i) - window_left        if window_left  >= 0
//                 j <= p(i) + window_right       if window_right >= 0
// The visible keys of a row are always one range [begin, end), which is what kernels use. It may be
// empty.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TANDEM_HOST_DEVICE __host__ __device__
#else
#define TANDEM_HOST_DEVICE
#endif

namespace tandem {

enum class Causal : uint8_t { kNone, kBottomRight, kTopLeft };

// Validate allows lengths up to this, so that no position computed from a rule leaves 64 bits.
inline constexpr int64_t kMaxSequenceLength = int64_t{1} << 48;

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

  // Position of query `q` among the keys.
  TANDEM_HOST_DEVICE int64_t Position(int64_t q) const {
    return causal == Causal::kTopLeft ? q : kv_len - q_len + q;
  }

  // Visible keys of query `q`; begin <= end, both within [0, kv_len].
  TANDEM_HOST_DEVICE KeyRange Range(int64_t q) const {
    const int64_t position = Position(q);
    int64_t begin = 0;
    int64_t end = kv_len;
    if (causal != Causal::kNone && position + 1 < end) end = position + 1;
    // Written as differences from the bounds: position + window_right may overflow.
    if (window_right >= 0 && window_right < kv_len + q_len && position + window_right + 1 < end) {
      end = position + window_right + 1;
    }
    if (window_left >= 0 && window_left < kv_len + q_len && position - window_left > begin) {
      begin = position - window_left;
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
