// Attention over a cache that lies in two memories (dispatch/split_cache.h), by both devices at the
// same time:
//
//   Queue    what the GPU needs is copied there in one piece (q, new keys, masks), its rows are
//            attended to and out and lse of that part copied back, all on its stream: the host
//            does not wait
//   RunHost  the CPU attends to the host's rows, on its threads
//   Finish   the host waits for the GPU, and merge_attention (exact) puts both parts together
//
// Where q, new keys and the result are in GPU memory instead, q goes to the host before the GPU
// begins with its part, the CPU's part of the result comes to the GPU, and the merge runs there.
//
// A cache that lies on one device makes a plain call there; without rows it runs where q is. All
// that AttentionArgs can say is supported but a paged cache. Partial results are f32, so that the
// result is within the bounds of a call on the whole (docs/numerics.md).
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "core/ops/attention.h"
#include "dispatch/context.h"
#include "dispatch/parcel.h"
#include "dispatch/run_here.h"
#include "dispatch/split_cache.h"

namespace tandem {

// Keeps the memory of partial results from call to call: once it has its size nothing is allocated
// (but an event of the GPU's where q is there).
class CacheAttention {
 public:
  explicit CacheAttention(Context& context) : context_(context) {}

  // args.out (and args.lse) = attention of args.q to the keys of the cache and to args.k_new, which
  // stand behind them. k, v and what belongs to them come from the cache: they, page_table,
  // keys_before, keys_after and new_after must not be set. All operands are on one device.
  //
  // When the GPU fails, the cache moves to host memory if its rows can still be copied there, and
  // the call runs on the CPU, unless the context forces the GPU (dispatch/fallback.h: events, a
  // second try after out of memory). After an error nothing of out is written.
  // InvalidArgument: as AttentionInto's; with rows on both devices also a bias or mask with a
  // column per key beside kv_lens and k_new. Unimplemented: a device has no kernel for its part.
  // Unavailable: the GPU is lost, and with it the rows that were there.
  absl::Status Run(SplitKvCache& cache, const AttentionArgs& args);

  // The three steps of Run, one after the other, with whatever else the host has to do in between.
  // cache and the memory of args must stay as they are until Finish. After an error the others are
  // not called.
  absl::Status Queue(const SplitKvCache& cache, const AttentionArgs& args);
  absl::Status RunHost();
  absl::Status Finish();

  // Calls whose GPU part failed and that the CPU did after the cache was moved.
  int64_t fallbacks() const { return fallbacks_; }
  // Bytes that the last call copied between the devices.
  int64_t moved_bytes() const { return moved_bytes_; }

 private:
  struct Side {
    bool runs = false;
    AttentionArgs args;  // of this device's part
    TensorView out, lse;
  };

  absl::Status Check(const SplitKvCache& cache, const AttentionArgs& args) const;
  absl::Status Steps(const SplitKvCache& cache, const AttentionArgs& args);
  void MakeSide(const SplitKvCache& cache, DeviceKind kind, bool last);
  // Adds all that the part reads from the other device.
  absl::Status SendOperands(DeviceKind to);
  // The call on a cache that is all in host memory.
  AttentionArgs WithCache(const SplitKvCache& cache, const AttentionArgs& args);
  absl::Status ReservePartials();
  void SetOutputs(Side& side, void* data, Device device);
  Side& side(DeviceKind kind) { return sides_[static_cast<size_t>(kind)]; }
  bool both() const { return sides_[0].runs && sides_[1].runs; }

  Context& context_;
  AttentionArgs whole_;                 // as given
  DeviceKind home_ = DeviceKind::kCpu;  // of q and out
  DeviceKind away_ = DeviceKind::kCuda;
  std::array<Side, 2> sides_;                // by DeviceKind
  Parcel parcel_;                            // operands of the part that is away
  BlockPair away_results_;                   // its out and lse, on both devices
  std::shared_ptr<Buffer> home_results_[2];  // of the part at home, by DeviceKind
  int64_t result_bytes_ = 0;
  double shared_seconds_ = 0.0;  // that both parts take at least
  std::unique_ptr<Event> sent_;  // q has arrived in host memory
  QueuedPart queued_;
  int64_t fallbacks_ = 0;
  int64_t moved_bytes_ = 0;
};

}  // namespace tandem
