// A key/value cache of one layer whose first rows lie in GPU memory and whose others in host
// memory: it can be longer than the GPU's memory, and both devices attend to their part at once
// (dispatch/cache_attention.h).
//
//   rows    0 ......... gpu_rows-1 | gpu_rows ......... capacity-1
//           GPU memory             | host memory
//
// Why the first ones. Each row is written once and never moves: a cache that keeps its latest rows
// on the GPU copies one to the host for every token beyond the limit. The GPU part is full before
// the host has any, so short sequences run on the GPU alone. Truncating frees host rows first. What
// it costs: with a sliding window the keys in sight are the host's once the sequence is gpu_rows +
// window long, and the GPU idles; a cache with a window needs to hold no more than the window.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "core/kv_cache.h"
#include "core/ops/rope.h"
#include "dispatch/context.h"
#include "dispatch/parcel.h"

namespace tandem {

// The new tokens of KvAppend (core/ops/kv_append.h), on the GPU or in host memory, together.
struct CacheAppendArgs {
  TensorView k = {};  // [B, Hkv, S, D]   f32, f16, bf16
  TensorView v = {};  // [B, Hkv, S, Dv]  f32, f16, bf16

  RopeRotation rope = {};  // optional: rotates k, and q
  TensorView q = {};      // [B, Hq, Sq, D]  optional, with rope only: queries of the last Sq tokens
  TensorView q_out = {};  // shape of q      iff q; in place allowed
};

class SplitKvCache {
 public:
  // The GPU's share is a multiple of this many rows (or everything): packed masks are cut there.
  static constexpr int64_t kRowStep = 32;

  // `gpu_rows` of shape.capacity lie on the GPU, rounded down to kRowStep. The context must outlive
  // the cache. InvalidArgument: bad sizes; rows for a GPU that is not there; rows for another
  // device than the one that the context forces. ResourceExhausted: out of memory of either kind.
  static absl::StatusOr<SplitKvCache> Create(Context& context, const KvCacheShape& shape,
                                             int64_t gpu_rows);

  const KvCacheShape& shape() const { return shape_; }
  int64_t length() const { return length_; }
  int64_t capacity() const { return shape_.capacity; }
  // Rows that lie on the GPU once the cache is full.
  int64_t gpu_rows() const { return gpu_rows_; }
  // Memory of that kind.
  int64_t bytes(DeviceKind kind) const;
  // Of one row of all heads: keys, values and scales.
  int64_t row_bytes() const;

  // The filled rows on one device, [B, Hkv, rows, D] each; without rows: extents of 0.
  struct Part {
    int64_t begin = 0;  // first row
    int64_t rows = 0;
    TensorView k, v, k_scale, v_scale;
  };
  Part part(DeviceKind kind) const;

  // Writes new tokens behind length(), each to the device its row is on, and counts them. Where
  // the rows are elsewhere than k and v those are sent there, in one copy. InvalidArgument: as
  // KvAppend's; more tokens than there is room for. When the GPU fails, the cache moves to host
  // memory if its rows can still be copied there, and the tokens are appended there, unless the
  // context forces the GPU (dispatch/fallback.h). After any error the cache is as before; q_out may
  // hold anything.
  absl::Status Append(const CacheAppendArgs& args);
  // Appends that failed on the GPU, and that the CPU did after the cache was moved.
  int64_t fallbacks() const { return fallbacks_; }
  // Forgets everything from position `length` on (0 <= length <= length()).
  absl::Status Truncate(int64_t length);
  // Moves rows so that the first `gpu_rows` are on the GPU, all others in host memory; waits until
  // they are. Needs both the old memory and the new for a moment. After an error (ResourceExhausted
  // and such; InvalidArgument as Create's) the cache is as before.
  absl::Status Move(int64_t gpu_rows);
  // Bytes of rows that Move(gpu_rows) would copy between the devices now.
  int64_t MovedBytes(int64_t gpu_rows) const;

 private:
  explicit SplitKvCache(Context& context) : context_(&context) {}

  // One piece of an append: tokens [begin, begin + tokens) of args, to `kind`.
  absl::Status AppendPiece(const CacheAppendArgs& args, DeviceKind kind, int64_t begin,
                           int64_t tokens, bool with_q);
  absl::Status CheckAppend(const CacheAppendArgs& args) const;
  // Of valid arguments.
  absl::Status AppendPieces(const CacheAppendArgs& args);
  // All in host memory, by the CPU: what is on the GPU is fetched.
  absl::Status AppendOnCpu(const CacheAppendArgs& args);
  absl::Status Advance(int64_t tokens);
  // nullptr: it has no rows there.
  KvCache* cache(DeviceKind kind) {
    std::optional<KvCache>& own = parts_[static_cast<size_t>(kind)];
    return own ? &*own : nullptr;
  }
  const KvCache* cache(DeviceKind kind) const {
    const std::optional<KvCache>& own = parts_[static_cast<size_t>(kind)];
    return own ? &*own : nullptr;
  }
  int64_t PartBegin(DeviceKind kind) const { return kind == DeviceKind::kCuda ? 0 : gpu_rows_; }

  Context* context_;
  KvCacheShape shape_;
  int64_t gpu_rows_ = 0;
  int64_t length_ = 0;
  std::array<std::optional<KvCache>, 2> parts_;  // by DeviceKind; absent: no rows
  Parcel parcel_;
  bool parcel_pending_ = false;
  int64_t fallbacks_ = 0;
};

}  // namespace tandem
